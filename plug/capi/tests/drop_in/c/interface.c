/* Sizes, constants, and what calls without a network return. argv[1]: a directory that is no switch. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <libvdeplug.h>
#include <stddef.h>
#include <stdint.h>

#include "check.h"

/* The types of the calls, as other programs declare pointers to them. */
static VDECONN *(*open_call)(char *, char *, int, struct vde_open_args *) = vde_open_real;
static ssize_t (*recv_call)(VDECONN *, void *, size_t, int) = vde_recv;
static ssize_t (*send_call)(VDECONN *, const void *, size_t, int) = vde_send;
static int (*datafd_call)(VDECONN *) = vde_datafd;
static int (*ctlfd_call)(VDECONN *) = vde_ctlfd;
static int (*close_call)(VDECONN *) = vde_close;
static VDESTREAM *(*stream_open_call)(void *, int, ssize_t (*)(void *, void *, size_t),
		void (*)(void *, int, char *, ...)) = vdestream_open;
static ssize_t (*stream_send_call)(VDESTREAM *, const void *, size_t) = vdestream_send;
static void (*stream_recv_call)(VDESTREAM *, unsigned char *, size_t) = vdestream_recv;
static void (*stream_close_call)(VDESTREAM *) = vdestream_close;

static void layout(void)
{
	CHECK(sizeof(struct vde_open_args) == 24);
	CHECK(offsetof(struct vde_open_args, port) == 0);
	CHECK(offsetof(struct vde_open_args, group) == 8);
	CHECK(offsetof(struct vde_open_args, mode) == 16);
	CHECK(LIBVDEPLUG_INTERFACE_VERSION == 1);
	CHECK(VDE_MAXMTU == 9216 && VDE_ETHBUFSIZE == 9234);
	CHECK(PACKET_LENGTH_ERROR == 1);

	/* Declared and used it would be a copy in this program, beside which the original then looks for its plug-ins. */
	uint64_t *tag = dlsym(RTLD_DEFAULT, "__vde_version_tag");
	CHECK(tag != NULL && *tag == 4);
}

static void null_handle(void)
{
	char frame[64] = "";

	errno = 0;
	CHECK(recv_call(NULL, frame, sizeof(frame), 0) == -1 && errno == EBADF);
	errno = 0;
	CHECK(send_call(NULL, frame, sizeof(frame), 0) == -1 && errno == EBADF);
	errno = 0;
	CHECK(datafd_call(NULL) == -1 && errno == EBADF);
	errno = 0;
	CHECK(ctlfd_call(NULL) == -1 && errno == EBADF);
	errno = 0;
	CHECK(close_call(NULL) == -1 && errno == EBADF);
}

static void version(char *nowhere)
{
	struct vde_open_args args = {.mode = 0700};

	errno = 0;
	CHECK(open_call(nowhere, "test", 2, &args) == NULL && errno == EINVAL);
	/* Without arguments there is nothing that a version could change. */
	errno = 0;
	CHECK(open_call(nowhere, "test", 2, NULL) == NULL && errno == ENOENT);
	errno = 0;
	CHECK(vde_open(nowhere, "test", &args) == NULL && errno == ENOENT);
}

int main(int argc, char **argv)
{
	CHECK(argc == 2);
	CHECK(stream_open_call && stream_send_call && stream_recv_call && stream_close_call);
	layout();
	null_handle();
	version(argv[1]);
	return 0;
}
