// Asks the SSH agent for its keys and prints how many it has; static, as the images of tests have no libraries.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

int main(void) {
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    unsigned char ask[5] = {0, 0, 0, 1, 11}, answer[9];
    strncpy(address.sun_path, getenv("SSH_AUTH_SOCK"), sizeof address.sun_path - 1);
    int agent = socket(AF_UNIX, SOCK_STREAM, 0);
    if (connect(agent, (struct sockaddr *)&address, sizeof address) || write(agent, ask, 5) != 5) return 1;
    for (size_t got = 0; got < sizeof answer;) {
        ssize_t n = read(agent, answer + got, sizeof answer - got);
        if (n <= 0) return 2;
        got += n;
    }
    printf("%d keys\n", answer[8]);
    return 0;
}
