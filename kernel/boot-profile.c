/*
 * PID 1 of boot-profile.sh: says that user space has begun, dumps the kernel log when started with "dump", and ends the
 * VM. Everything it does before the first line counts as boot time, so the line comes first.
 */
#include <stdio.h>
#include <string.h>
#include <sys/klog.h>
#include <sys/reboot.h>
#include <termios.h>
#include <time.h>
#include <unistd.h>

static char log_text[4 << 20];

static void put(const char *text, size_t len)
{
	while (len > 0) {
		ssize_t n = write(1, text, len);
		if (n <= 0)
			return;
		text += n;
		len -= (size_t)n;
	}
}

int main(int argc, char **argv)
{
	struct timespec up;
	char line[64];

	clock_gettime(CLOCK_MONOTONIC, &up);
	put(line, (size_t)snprintf(line, sizeof(line), "profile-pid1 %lld.%06ld\n", (long long)up.tv_sec, up.tv_nsec / 1000));
	tcdrain(1);
	if (argc > 1 && strcmp(argv[1], "dump") == 0) {
		int n = klogctl(3 /* SYSLOG_ACTION_READ_ALL */, log_text, sizeof(log_text));
		if (n > 0)
			put(log_text, (size_t)n);
		put("profile-end\n", 12);
	}
	tcdrain(1);
	reboot(RB_AUTOBOOT);
	return 1;
}
