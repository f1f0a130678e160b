/* What the calls do on an open connection. argv: name of the test, locator. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <libvdeplug.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <unistd.h>

#include "check.h"

static char *locator;

static VDECONN *open_one(void)
{
	VDECONN *conn = vde_open(locator, "calls", NULL);

	CHECK(conn != NULL);
	return conn;
}

/* A broadcast frame that begins and ends with this byte behind its header. */
static void fill(unsigned char *frame, size_t len, unsigned char mark)
{
	memset(frame, mark, len);
	memset(frame, 0xff, len < 6 ? len : 6);
	if (len >= 14)
		memcpy(frame + 6, "\2\0\0\0\0\1\x88\xb5", 8);
}

static void wait_readable(int fd)
{
	struct pollfd pollfd = {.fd = fd, .events = POLLIN};

	CHECK(poll(&pollfd, 1, 20000) == 1);
}

static void set_nonblocking(int fd)
{
	CHECK(fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) | O_NONBLOCK) == 0);
}

/* The process at the other end. */
static pid_t other_end(VDECONN *conn)
{
	struct ucred peer;
	socklen_t len = sizeof(peer);

	CHECK(getsockopt(vde_ctlfd(conn), SOL_SOCKET, SO_PEERCRED, &peer, &len) == 0);
	return peer.pid;
}

static void test_open(void)
{
	CHECK(vde_close(open_one()) == 0);
}

static void test_frames(void)
{
	VDECONN *a = open_one(), *b = open_one();
	static unsigned char sent[VDE_ETHBUFSIZE], got[VDE_ETHBUFSIZE];
	int fd = vde_datafd(b), ctl = vde_ctlfd(b);
	struct pollfd quiet = {.fd = ctl, .events = POLLIN};

	CHECK(fd >= 0 && ctl >= 0 && fd != ctl);
	/* It waits, like the original's, until the program wants otherwise. */
	CHECK((fcntl(fd, F_GETFL) & O_NONBLOCK) == 0);
	for (size_t len = 60; len <= 1500; len += 480) {
		fill(sent, len, len);
		CHECK(vde_send(a, sent, len, 0) == (ssize_t)len);
		wait_readable(fd);
		CHECK(vde_recv(b, got, sizeof(got), 0) == (ssize_t)len);
		CHECK(memcmp(sent, got, len) == 0);
	}
	/* Longer than there is room for: cut, and nothing is written behind. */
	CHECK(vde_send(a, sent, 1500, 0) == 1500);
	memset(got, 'x', sizeof(got));
	CHECK(vde_recv(b, got, 100, 0) == 100);
	CHECK(memcmp(sent, got, 100) == 0 && got[100] == 'x');
	/* No frames: they go nowhere, which is no error. */
	for (size_t len = 0; len < 14; len++)
		CHECK(vde_send(a, sent, len, 0) == (ssize_t)len);
	CHECK(vde_send(a, sent, 1 << 24, 0) == -1 && errno == EMSGSIZE);
	CHECK(vde_send(a, sent, 64, 0) == 64);
	CHECK(vde_recv(b, got, sizeof(got), 0) == 64);
	CHECK(vde_datafd(b) == fd && vde_ctlfd(b) == ctl);
	CHECK(poll(&quiet, 1, 0) == 0);
	CHECK(vde_close(a) == 0 && vde_close(b) == 0);
	CHECK(fcntl(fd, F_GETFD) == -1 && fcntl(ctl, F_GETFD) == -1);
}

static void test_nonblocking(void)
{
	VDECONN *conn = open_one();
	unsigned char frame[1000];
	pid_t other = other_end(conn);
	int count = 0;

	set_nonblocking(vde_datafd(conn));
	CHECK(vde_recv(conn, frame, sizeof(frame), 0) == -1 && errno == EAGAIN);
	fill(frame, sizeof(frame), 1);
	CHECK(kill(other, SIGSTOP) == 0);
	while (vde_send(conn, frame, sizeof(frame), 0) == sizeof(frame))
		CHECK(++count < 10000);
	CHECK(errno == EAGAIN && count > 10);
	CHECK(kill(other, SIGCONT) == 0);
	CHECK(vde_close(conn) == 0);
}

/* What a thread does, and how far it is. */
struct work {
	VDECONN *conn;
	pthread_t thread;
	volatile pid_t id;
	volatile int done, cleaned;
};

static void start(struct work *work, void *(*run)(void *))
{
	CHECK(pthread_create(&work->thread, NULL, run, work) == 0);
}

/* Waits until the thread sleeps in the kernel: it has nothing to sleep for but the call. */
static void wait_asleep(struct work *work)
{
	char path[64], text[256];

	for (int tries = 0; tries < 4000; tries++, usleep(5000)) {
		if (work->id == 0)
			continue;
		snprintf(path, sizeof(path), "/proc/self/task/%d/stat", work->id);
		int fd = open(path, O_RDONLY);
		CHECK(fd >= 0);
		ssize_t len = read(fd, text, sizeof(text) - 1);
		CHECK(len > 0);
		close(fd);
		text[len] = 0;
		if (strrchr(text, ')')[2] == 'S')
			return;
	}
	CHECK(!"the thread sleeps");
}

static void *receive_one(void *arg)
{
	struct work *work = arg;
	unsigned char frame[VDE_ETHBUFSIZE];

	work->id = gettid();
	CHECK(vde_recv(work->conn, frame, sizeof(frame), 0) == 77);
	work->done = 1;
	return NULL;
}

static void *send_many(void *arg)
{
	struct work *work = arg;
	unsigned char frame[1000];

	work->id = gettid();
	fill(frame, sizeof(frame), 1);
	for (int i = 0; i < 1000; i++)
		CHECK(vde_send(work->conn, frame, sizeof(frame), 0) == sizeof(frame));
	work->done = 1;
	return NULL;
}

static void test_blocking(void)
{
	struct work receiver = {.conn = open_one()}, sender = {.conn = open_one()};
	pid_t other = other_end(sender.conn);
	unsigned char frame[77];

	start(&receiver, receive_one);
	wait_asleep(&receiver);
	CHECK(!receiver.done);
	fill(frame, sizeof(frame), 1);
	CHECK(vde_send(sender.conn, frame, sizeof(frame), 0) == sizeof(frame));
	CHECK(pthread_join(receiver.thread, NULL) == 0 && receiver.done);

	CHECK(kill(other, SIGSTOP) == 0);
	start(&sender, send_many);
	wait_asleep(&sender);
	CHECK(!sender.done);
	CHECK(kill(other, SIGCONT) == 0);
	CHECK(pthread_join(sender.thread, NULL) == 0 && sender.done);
	CHECK(vde_close(receiver.conn) == 0 && vde_close(sender.conn) == 0);
}

static void ignore(int signal)
{
	(void)signal;
}

static void test_interrupted(void)
{
	VDECONN *conn = open_one();
	struct sigaction action = {.sa_handler = ignore};
	struct itimerval often = {{0, 20000}, {0, 20000}}, never = {{0, 0}, {0, 0}};
	unsigned char frame[100];

	CHECK(sigaction(SIGALRM, &action, NULL) == 0);
	CHECK(setitimer(ITIMER_REAL, &often, NULL) == 0);
	CHECK(vde_recv(conn, frame, sizeof(frame), 0) == -1 && errno == EINTR);
	CHECK(setitimer(ITIMER_REAL, &never, NULL) == 0);
	CHECK(vde_close(conn) == 0);
}

static void cleanup(void *arg)
{
	((struct work *)arg)->cleaned = 1;
}

static void *receive_for_ever(void *arg)
{
	struct work *work = arg;
	unsigned char frame[100];

	work->id = gettid();
	pthread_cleanup_push(cleanup, work);
	vde_recv(work->conn, frame, sizeof(frame), 0);
	pthread_cleanup_pop(0);
	return NULL;
}

static void test_cancelled(void)
{
	struct work work = {.conn = open_one()};
	void *result;

	start(&work, receive_for_ever);
	wait_asleep(&work);
	CHECK(pthread_cancel(work.thread) == 0);
	CHECK(pthread_join(work.thread, &result) == 0);
	CHECK(result == PTHREAD_CANCELED && work.cleaned);
	CHECK(vde_close(work.conn) == 0);
}

/* A child that gives up what it inherited leaves its parent's connections alone. */
static void test_fork(void)
{
	VDECONN *a = open_one(), *b = open_one();
	unsigned char frame[100], got[200];
	struct pollfd ctl = {.fd = vde_ctlfd(a), .events = POLLIN};
	int status, closed[2];
	pid_t child = fork();

	CHECK(child >= 0);
	if (child == 0) {
		int fd = vde_datafd(a);

		CHECK(vde_close(a) == 0 && vde_close(b) == 0);
		CHECK(fcntl(fd, F_GETFD) == -1);
		_exit(0);
	}
	CHECK(waitpid(child, &status, 0) == child && status == 0);
	fill(frame, sizeof(frame), 1);
	CHECK(vde_send(a, frame, sizeof(frame), 0) == sizeof(frame));
	wait_readable(vde_datafd(b));
	CHECK(vde_recv(b, got, sizeof(got), 0) == sizeof(frame));
	CHECK(poll(&ctl, 1, 0) == 0);

	/* And the other way round: the child goes on when the parent has closed. */
	CHECK(pipe(closed) == 0);
	child = fork();
	CHECK(child >= 0);
	if (child != 0) {
		CHECK(vde_close(a) == 0 && vde_close(b) == 0);
		CHECK(write(closed[1], "x", 1) == 1);
		CHECK(waitpid(child, &status, 0) == child && status == 0);
		return;
	}
	CHECK(read(closed[0], got, 1) == 1);
	CHECK(vde_send(b, frame, sizeof(frame), 0) == sizeof(frame));
	wait_readable(vde_datafd(a));
	CHECK(vde_recv(a, got, sizeof(got), 0) == sizeof(frame));
	CHECK(poll(&ctl, 1, 0) == 0);
	_exit(0);
}

/* A child that closes a network which its parent serves. */
static void test_fork_of_owner(void)
{
	VDECONN *owner = open_one();
	char *peers = strchr(locator, ':') + 3;
	int status, fd = vde_datafd(owner);
	unsigned char frame[100], got[200];
	pid_t child = fork();

	CHECK(child >= 0);
	if (child == 0) {
		CHECK(vde_close(owner) == 0 && fcntl(fd, F_GETFD) == -1);
		_exit(0);
	}
	CHECK(waitpid(child, &status, 0) == child && status == 0);
	CHECK(access(peers, F_OK) == 0);
	VDECONN *peer = vde_open(peers, "peer", NULL);
	CHECK(peer != NULL);
	fill(frame, sizeof(frame), 1);
	CHECK(vde_send(peer, frame, sizeof(frame), 0) == sizeof(frame));
	wait_readable(fd);
	while (vde_recv(owner, got, sizeof(got), 0) != sizeof(frame))
		CHECK(got[0] == 0);
	CHECK(vde_close(peer) == 0 && vde_close(owner) == 0);
	CHECK(access(peers, F_OK) == -1);
}

/* A socket that is the connection, whose other end we hold. */
static void test_socket(void)
{
	unsigned char frame[1000], got[2000];
	int ends[2], count = 0;
	char text[40];

	CHECK(socketpair(AF_UNIX, SOCK_SEQPACKET, 0, ends) == 0);
	snprintf(text, sizeof(text), "%s%d", locator, ends[0]);
	locator = text;
	VDECONN *conn = open_one();
	struct pollfd end = {.fd = vde_ctlfd(conn), .events = POLLIN};
	struct pollfd work = {.fd = vde_datafd(conn), .events = POLLIN};

	fill(frame, sizeof(frame), 1);
	CHECK(vde_send(conn, frame, sizeof(frame), 0) == sizeof(frame));
	CHECK(recv(ends[1], got, sizeof(got), 0) == sizeof(frame));
	CHECK(send(ends[1], frame, 100, 0) == 100);
	wait_readable(work.fd);
	CHECK(vde_recv(conn, got, 60, 0) == 60 && memcmp(frame, got, 60) == 0);
	/* No frame, and no length of one: the first byte is not left as it was. */
	CHECK(send(ends[1], frame, 13, 0) == 13);
	wait_readable(work.fd);
	got[0] = 'x';
	CHECK(vde_recv(conn, got, sizeof(got), 0) == 1 && got[0] == 0);
	CHECK(poll(&work, 1, 0) == 0 && poll(&end, 1, 0) == 0);

	set_nonblocking(work.fd);
	CHECK(vde_recv(conn, got, sizeof(got), 0) == -1 && errno == EAGAIN);
	while (vde_send(conn, frame, sizeof(frame), 0) == sizeof(frame))
		CHECK(++count < 10000);
	CHECK(errno == EAGAIN && count > 10);

	/* The end shows on one descriptor, is told once on the other, and stays. */
	CHECK(close(ends[1]) == 0);
	wait_readable(work.fd);
	CHECK(vde_recv(conn, got, sizeof(got), 0) == 0);
	CHECK(poll(&end, 1, 0) == 1 && poll(&work, 1, 0) == 0);
	CHECK(vde_recv(conn, got, sizeof(got), 0) == 0);
	CHECK(vde_send(conn, frame, sizeof(frame), 0) == -1);
	CHECK(vde_close(conn) == 0);
	CHECK(fcntl(end.fd, F_GETFD) == -1 && fcntl(work.fd, F_GETFD) == -1);
}

static void test_dead(void)
{
	VDECONN *conn = open_one();
	unsigned char frame[100];
	char byte;

	CHECK(kill(other_end(conn), SIGKILL) == 0);
	wait_readable(vde_ctlfd(conn));
	CHECK(read(vde_ctlfd(conn), &byte, 1) == 0);
	fill(frame, sizeof(frame), 1);
	CHECK(vde_send(conn, frame, sizeof(frame), 0) == -1 && errno == ECONNREFUSED);
	CHECK(vde_close(conn) == 0);
}

/* Nothing comes out of this network, so only what waits or does not wait can be seen. */
static void test_silent(void)
{
	struct work work = {.conn = open_one()};
	unsigned char frame[100];
	int fd = vde_datafd(work.conn);
	struct pollfd quiet = {.fd = fd, .events = POLLIN};
	void *result;

	CHECK(poll(&quiet, 1, 0) == 0);
	fill(frame, sizeof(frame), 1);
	CHECK(vde_send(work.conn, frame, sizeof(frame), 0) == sizeof(frame));
	CHECK(vde_send(work.conn, frame, 13, 0) == 13);
	start(&work, receive_for_ever);
	wait_asleep(&work);
	CHECK(pthread_cancel(work.thread) == 0);
	CHECK(pthread_join(work.thread, &result) == 0);
	CHECK(result == PTHREAD_CANCELED && work.cleaned);
	set_nonblocking(fd);
	CHECK(vde_recv(work.conn, frame, sizeof(frame), 0) == -1 && errno == EAGAIN);
	CHECK(vde_close(work.conn) == 0);
	CHECK(fcntl(fd, F_GETFD) == -1);
}

/* Lengths that no memory has: what a call that failed returned, taken for a length. */
static void test_negative(void)
{
	static const char *const networks[] = {"null://", "multi://"};
	/* Not on the stack: the kernel refuses a range that reaches the end of the address space, where a stack may lie. */
	static unsigned char frame[100];
	unsigned char byte = 7;
	char path[300];

	for (size_t i = 0; i < 2; i++) {
		VDECONN *conn, *peer = NULL;

		snprintf(path, sizeof(path), "%s%s", networks[i], i ? locator : "");
		CHECK((conn = vde_open(path, "negative", NULL)) != NULL);
		set_nonblocking(vde_datafd(conn));
		CHECK(vde_send(conn, frame, -1, 0) == -1 && errno == EMSGSIZE);
		CHECK(vde_send(conn, frame, (size_t)1 << 63, 0) == -1 && errno == EMSGSIZE);
		if (i == 0)
			CHECK(vde_recv(conn, frame, -1, 0) == -1 && errno == EAGAIN);
		else {
			CHECK((peer = vde_open(locator, "peer", NULL)) != NULL);
			fill(frame, sizeof(frame), 1);
			CHECK(vde_send(peer, frame, sizeof(frame), 0) == sizeof(frame));
			memset(frame, 0, sizeof(frame));
			CHECK(vde_recv(conn, frame, -1, 0) == sizeof(frame));
			CHECK(vde_close(peer) == 0);
		}
		CHECK(vde_close(conn) == 0);
	}
	VDESTREAM *stream = vdestream_open(NULL, -1, NULL, NULL);
	errno = 0;
	vdestream_recv(stream, &byte, -1);
	CHECK(errno == EINVAL && byte == 7);
	vdestream_close(stream);
}

/* argv[3..]: port, mode, group or "-", description or "-", user to become. Holds the connection until its standard input ends. */
static void test_hold(char **argv)
{
	struct vde_open_args args = {.port = atoi(argv[3]), .mode = strtoul(argv[4], NULL, 8)};
	uid_t user = atoi(argv[7]);
	VDECONN *conn;
	char byte;

	if (strcmp(argv[5], "-") != 0)
		args.group = argv[5];
	CHECK(setresgid(user, user, user) == 0 && setresuid(user, user, user) == 0);
	conn = vde_open(locator, strcmp(argv[6], "-") == 0 ? NULL : argv[6], &args);
	if (conn == NULL) {
		printf("%d\n", errno);
		return;
	}
	printf("open\n");
	fflush(stdout);
	CHECK(read(0, &byte, 1) == 0);
	CHECK(vde_close(conn) == 0);
}

int main(int argc, char **argv)
{
	static const struct {
		const char *name;
		void (*run)(void);
	} tests[] = {
		{"open", test_open},
		{"frames", test_frames},
		{"nonblocking", test_nonblocking},
		{"blocking", test_blocking},
		{"interrupted", test_interrupted},
		{"cancelled", test_cancelled},
		{"fork", test_fork},
		{"dead", test_dead},
		{"fork-of-owner", test_fork_of_owner},
		{"silent", test_silent},
		{"socket", test_socket},
		{"negative", test_negative},
	};

	CHECK(argc >= 3);
	locator = argv[2];
	for (size_t i = 0; i < sizeof(tests) / sizeof(*tests); i++)
		if (strcmp(argv[1], tests[i].name) == 0) {
			tests[i].run();
			return 0;
		}
	CHECK(strcmp(argv[1], "hold") == 0 && argc == 8);
	test_hold(argv);
	return 0;
}
