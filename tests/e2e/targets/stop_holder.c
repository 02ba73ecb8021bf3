/* Another tracer: seizes every thread that is named, says "ready", and holds them until killed. */
#include <stdio.h>
#include <stdlib.h>
#include <sys/ptrace.h>
#include <unistd.h>

int main(int argc, char **argv)
{
	for (int i = 1; i < argc; i++)
		if (ptrace(PTRACE_SEIZE, atoi(argv[i]), 0, 0)) {
			perror("seize");
			return 1;
		}
	puts("ready");
	fflush(stdout);
	for (;;)
		pause();
}
