/*
 * The same program as vde-load (src/main.rs says what it is asked and answers), over the C library whose file
 * is its first argument: Debian's or ours.
 *
 *     load-c /usr/lib/x86_64-linux-gnu/libvdeplug.so.2 LOCATOR FRAME-SIZE OWN-NUMBER PEER-NUMBER
 *
 * The library is used in the fastest way that it allows. A data descriptor that is a socket is made non-blocking to
 * receive, so that poll is called only when nothing is there, and blocking to send. Any other (the epoll descriptor
 * of a node, on which vde_recv would wait without limit) is polled before each vde_recv, as all programs do.
 */
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/types.h>
#include <time.h>
#include <unistd.h>

#define ROOM 9234
#define CLOCK_EVERY 256

static void *(*open_)(char *, char *, int, void *);
static ssize_t (*recv_)(void *, void *, size_t, int);
static ssize_t (*send_)(void *, const void *, size_t, int);
static int (*datafd_)(void *);

static void *conn;
static int fd, is_socket;
static size_t size;
static unsigned char frame[ROOM], hello[60], room[ROOM];
static uint64_t frames, bytes, first, last;

static void die(const char *what)
{
	perror(what);
	exit(1);
}

static void *symbol(void *library, const char *name)
{
	void *found = dlsym(library, name);
	if (found == NULL) {
		fprintf(stderr, "%s\n", dlerror());
		exit(1);
	}
	return found;
}

static uint64_t now(void)
{
	struct timespec time;
	clock_gettime(CLOCK_MONOTONIC, &time);
	return (uint64_t)time.tv_sec * 1000000000 + (uint64_t)time.tv_nsec;
}

static void blocking(int yes)
{
	int flags = fcntl(fd, F_GETFL);

	if (is_socket && fcntl(fd, F_SETFL, yes ? flags & ~O_NONBLOCK : flags | O_NONBLOCK) < 0)
		die("fcntl");
}

static int is_readable(int which)
{
	struct pollfd poll_fd = { .fd = which, .events = POLLIN };

	return poll(&poll_fd, 1, 0) > 0;
}

/* Takes all that is there: a socket tells by itself when that was all, anything else is asked by poll. */
static void take_all(void)
{
	uint64_t before = frames;

	do {
		ssize_t got = recv_(conn, room, sizeof room, 0);
		/* Nothing there, or the other end of a pair is not there yet. */
		if (got < 0 && (errno == EAGAIN || errno == ECONNREFUSED || errno == ENOTCONN))
			break;
		if (got == 0 || (got < 0 && errno != EINTR))
			die("vde_recv");
		if (got >= 14) { /* 1: something happened, but no frame */
			if (first == 0)
				first = now();
			frames++;
			bytes += (uint64_t)got;
		}
	} while (is_socket || is_readable(fd));
	if (frames > before)
		last = now();
}

/* Sends as fast as it goes. */
static void send_for(uint64_t milliseconds)
{
	uint64_t start = now(), time = start, sent = 0;

	blocking(1);
	while (time - start < milliseconds * 1000000) {
		for (int i = 0; i < CLOCK_EVERY; i++) {
			if (send_(conn, frame, size, 0) > 0) {
				sent++;
			} else {
				struct pollfd room_fd = { .fd = fd, .events = POLLOUT };
				poll(&room_fd, 1, 10);
				break;
			}
		}
		time = now();
	}
	blocking(0);
	printf("send %" PRIu64 " %" PRIu64 " %" PRIu64 "\n", sent, sent * size, time - start);
}

/* Does what a line says. */
static void obey(const char *line)
{
	uint64_t milliseconds;

	if (strcmp(line, "hello\n") == 0) {
		send_(conn, hello, sizeof hello, 0);
		printf("hello\n");
	} else if (strcmp(line, "mark\n") == 0) {
		frames = bytes = first = last = 0;
		printf("mark\n");
	} else if (strcmp(line, "count\n") == 0) {
		printf("count %" PRIu64 " %" PRIu64 " %" PRIu64 "\n", frames, bytes, last - first);
	} else if (sscanf(line, "send %" SCNu64, &milliseconds) == 1) {
		send_for(milliseconds);
	} else {
		fprintf(stderr, "there is no order \"%s\"\n", line);
		exit(1);
	}
	fflush(stdout);
}

/* From end number `own` to `peer`, 0 is everybody; the rest are zeros. */
static void address(unsigned char *to, int own, int peer)
{
	memcpy(to, (unsigned char[6]){ 2 }, 6);
	to[5] = (unsigned char)peer;
	if (peer == 0)
		memset(to, 0xff, 6);
	memcpy(to + 6, (unsigned char[6]){ 2 }, 6);
	to[11] = (unsigned char)own;
	memcpy(to + 12, (unsigned char[2]){ 0x88, 0xb5 }, 2);
}

int main(int argc, char **argv)
{
	char line[64];
	void *library;
	socklen_t len = sizeof is_socket;

	if (argc != 6 || (size = (size_t)atoi(argv[3])) < 60 || size > sizeof frame) {
		fprintf(stderr, "usage: load-c LIBRARY LOCATOR FRAME-SIZE OWN-NUMBER PEER-NUMBER\n");
		return 1;
	}
	library = dlopen(argv[1], RTLD_NOW);
	if (library == NULL) {
		fprintf(stderr, "%s\n", dlerror());
		return 1;
	}
	*(void **)&open_ = symbol(library, "vde_open_real");
	*(void **)&recv_ = symbol(library, "vde_recv");
	*(void **)&send_ = symbol(library, "vde_send");
	*(void **)&datafd_ = symbol(library, "vde_datafd");
	address(frame, atoi(argv[4]), atoi(argv[5]));
	address(hello, atoi(argv[4]), 0);
	conn = open_(argv[2], "load-c", 1, NULL);
	if (conn == NULL)
		die(argv[2]);
	fd = datafd_(conn);
	is_socket = getsockopt(fd, SOL_SOCKET, SO_TYPE, &(int){ 0 }, &len) == 0;
	blocking(0);
	printf("ready\n");
	fflush(stdout);
	for (;;) {
		struct pollfd fds[2] = { { .fd = fd, .events = POLLIN }, { .fd = 0, .events = POLLIN } };
		if (poll(fds, 2, -1) < 0 && errno != EINTR)
			die("poll");
		if (fds[0].revents != 0)
			take_all();
		if (fds[1].revents != 0) {
			/* One line is written at a time: nothing stays behind in the buffer. */
			if (fgets(line, sizeof line, stdin) == NULL)
				return 0;
			obey(line);
		}
	}
}
