/*
 * PID 1 of boot-profile.sh: says that user space has begun, dumps the kernel log when started with "dump", and ends the
 * VM. Everything it does before the first line counts as boot time, so the line comes first.
 * On the host, "boot-profile tsc" prints the frequency of the time-stamp counter in kHz, for tsc_early_khz=.
 */
#include <stdint.h>
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

#ifdef __x86_64__
/* A counter value and the time it was read at, in nanoseconds: the tightest of fifty tries, as others use the CPU too. */
static void read_tsc(uint64_t *tsc, double *ns)
{
	uint64_t best = UINT64_MAX;

	for (int i = 0; i < 50; i++) {
		struct timespec now;
		uint64_t before = __builtin_ia32_rdtsc();
		clock_gettime(CLOCK_MONOTONIC_RAW, &now);
		uint64_t after = __builtin_ia32_rdtsc();

		if (after - before < best) {
			best = after - before;
			*tsc = before + best / 2;
			*ns = (double)now.tv_sec * 1e9 + (double)now.tv_nsec;
		}
	}
}

static int print_tsc_khz(void)
{
	const struct timespec pause = { .tv_nsec = 20000000 };
	uint64_t first, last;
	double start, end;

	read_tsc(&first, &start);
	nanosleep(&pause, NULL);
	read_tsc(&last, &end);
	printf("%.0f\n", (double)(last - first) / (end - start) * 1e6);
	return 0;
}
#endif

int main(int argc, char **argv)
{
	struct timespec up;
	char line[64];

#ifdef __x86_64__
	if (getpid() != 1 && argc > 1 && strcmp(argv[1], "tsc") == 0)
		return print_tsc_khz();
#endif
	if (getpid() != 1)
		return 2; /* it would restart the host */
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
