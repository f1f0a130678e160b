/* What vdeq takes for QEMU 10: prints its version, and with an interface on a descriptor sends each frame back to where it came
 * from. */
#include <unistd.h>

#include "check.h"

int main(int argc, char **argv)
{
	unsigned char frame[4096];
	ssize_t len;
	int fd = -1;

	CHECK(argc >= 2);
	if (strcmp(argv[1], "-h") == 0) {
		printf("QEMU emulator version 10.0.2\n");
		return 0;
	}
	for (int i = 1; i < argc; i++) {
		char *word = strstr(argv[i], "fd=");

		if (word != NULL)
			fd = atoi(word + 3);
	}
	CHECK(fd >= 0);
	while ((len = read(fd, frame, sizeof(frame))) >= 14) {
		memcpy(frame, frame + 6, 6);
		memcpy(frame + 6, "\2\0\0\0\0\x77", 6);
		CHECK(write(fd, frame, len) == len);
	}
	return 0;
}
