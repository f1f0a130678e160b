/* Tries to open each argument and prints what errno says. */
#include <libvdeplug.h>

#include "check.h"

int main(int argc, char **argv)
{
	for (int i = 1; i < argc; i++) {
		errno = 0;
		CHECK(vde_open(argv[i], "errors", NULL) == NULL);
		printf("%d\n", errno);
	}
	return 0;
}
