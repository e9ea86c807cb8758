/* What critest runs set-user-ID root to see whether a container may gain privileges. */
#include <stdio.h>
#include <unistd.h>

int main(void) { return printf("Effective uid: %u\n", (unsigned)geteuid()) < 0; }
