/* vdestream_*: "read STEP" takes its standard input apart, fed STEP bytes at a time, and prints what was found; "write LENGTH..." sends
 * frames of these lengths to its standard output; "write-nonblocking LENGTH..." does it without waiting. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <libvdeplug.h>
#include <poll.h>
#include <stdarg.h>
#include <unistd.h>

#include "check.h"

static int opaque;

static ssize_t frame(void *arg, void *buf, size_t len)
{
	unsigned char *bytes = buf, first = bytes[0];

	CHECK(arg == &opaque);
	for (size_t i = 0; i < len; i++)
		CHECK(bytes[i] == (unsigned char)(first + i));
	/* The bytes are ours to write. */
	memset(buf, 0, len);
	printf("frame %zu\n", len);
	return -1;
}

static void error(void *arg, int type, char *format, ...)
{
	va_list args;

	CHECK(arg == &opaque && type == PACKET_LENGTH_ERROR);
	va_start(args, format);
	vprintf(format, args);
	va_end(args);
	printf("\n");
}

static void read_stream(size_t step)
{
	static unsigned char bytes[1 << 20];
	VDESTREAM *stream = vdestream_open(&opaque, -1, frame, error);
	size_t have = 0;
	ssize_t got;

	CHECK(stream != NULL);
	while ((got = read(0, bytes + have, sizeof(bytes) - have)) > 0)
		have += got;
	CHECK(got == 0 && have < sizeof(bytes));
	vdestream_recv(stream, bytes, 0);
	for (size_t at = 0; at < have; at += step)
		vdestream_recv(stream, bytes + at, have - at < step ? have - at : step);
	vdestream_close(stream);
}

static void write_stream(char **lengths, int wait)
{
	static unsigned char bytes[1 << 17];
	VDESTREAM *stream = vdestream_open(NULL, 1, NULL, NULL);
	struct pollfd out = {.fd = 1, .events = POLLOUT};

	CHECK(stream != NULL);
	for (size_t i = 0; i < sizeof(bytes); i++)
		bytes[i] = i;
	for (; *lengths; lengths++) {
		size_t len = atoi(*lengths);
		ssize_t sent;

		do {
			errno = 0;
			sent = vdestream_send(stream, bytes, len);
		} while (!wait && sent == -1 && errno == EAGAIN && poll(&out, 1, -1) == 1);
		CHECK(sent == (ssize_t)(len > 9236 ? 0 : len + 2));
	}
	vdestream_close(stream);
}

int main(int argc, char **argv)
{
	CHECK(argc > 2);
	if (strcmp(argv[1], "read") == 0)
		read_stream(atoi(argv[2]));
	else if (strcmp(argv[1], "write") == 0)
		write_stream(argv + 2, 1);
	else {
		CHECK(fcntl(1, F_SETFL, O_NONBLOCK) == 0);
		write_stream(argv + 2, 0);
	}
	return 0;
}
