/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/*
 * libvdeplug: Ethernet frames to and from Virtual Distributed Ethernet networks.
 *
 *	VDECONN *conn = vde_open("/run/vde.ctl", "my program", NULL);
 *	if (conn == NULL)
 *		err(1, "vde_open");
 *	struct pollfd fds[] = {
 *		{ .fd = vde_datafd(conn), .events = POLLIN },
 *		{ .fd = vde_ctlfd(conn), .events = POLLIN },
 *	};
 *	while (poll(fds, 2, -1) > 0 && fds[1].revents == 0) {
 *		char frame[VDE_ETHBUFSIZE];
 *		ssize_t len = vde_recv(conn, frame, sizeof(frame), 0);
 *		if (len >= 14)
 *			vde_send(conn, frame, len, 0);
 *	}
 *	vde_close(conn);
 *
 * Names, types and layout are those of the library of the same name that came with VDE, so programs made for either
 * work with both. Link with -lvdeplug (pkg-config: vdeplug).
 *
 * A call that fails returns NULL or -1 and sets errno; NULL in place of a handle is EBADF. All calls on one
 * connection but vde_close may be made by several threads at once.
 */
#ifndef LIBVDEPLUG_H
#define LIBVDEPLUG_H

#include <sys/types.h>

#ifdef __cplusplus
extern "C" {
#endif

#define LIBVDEPLUG_INTERFACE_VERSION 1

/* The largest payload of a frame, and room for every frame: payload, Ethernet header, VLAN tag. */
#define VDE_MAXMTU 9216
#define VDE_ETHBUFSIZE (VDE_MAXMTU + 14 + 4)

/* An open connection. */
struct vdeconn;
typedef struct vdeconn VDECONN;

/* What may be asked for beside the locator; what the locator says in brackets wins. */
struct vde_open_args {
	int port;    /* port of the switch; 0: any that is free, negative: the management port */
	char *group; /* group, by name or number, that our end's socket is given to; NULL: none */
	mode_t mode; /* mode of our end's socket; 0: the default */
};

/*
 * Opens a connection.
 *
 * locator: a switch's directory, with a port in brackets if need be (/run/sw[5]); SCHEME://... for anything else; a
 *          file that holds such a line; NULL or "" for the user's default network.
 * descr:   what the network shows for this connection; may be NULL.
 * args:    struct vde_open_args *, or NULL for the defaults.
 *
 * Errors: ENOENT and ENOTDIR no such network, EACCES it may not be used, ECONNREFUSED it is dead or refuses,
 * EADDRINUSE it refuses this port, ETIMEDOUT it does not answer, EPROTO what answers is no switch, EINVAL the locator
 * or args cannot be understood, EPROTONOSUPPORT unknown scheme, EEXIST what was to be made is there already (a network
 * that is served, one end of a pair), ENAMETOOLONG, and what system calls report.
 */
#define vde_open(locator, descr, args) vde_open_real((locator), (descr), LIBVDEPLUG_INTERFACE_VERSION, (args))
VDECONN *vde_open_real(char *locator, char *descr, int interface_version, struct vde_open_args *args);

/*
 * Receives one frame into buf, cut to len bytes if it is longer. Waits for it, unless O_NONBLOCK is set on the data
 * descriptor: then EAGAIN. flags are ignored.
 *
 * Returns 14 or more: the length of the frame.
 *         1: something other than a frame was dealt with; call again when the data descriptor is readable.
 *         0: the connection has ended.
 * That a switch has ended shows on vde_ctlfd alone; a vde_recv that waits for its frames goes on waiting.
 */
ssize_t vde_recv(VDECONN *conn, void *buf, size_t len, int flags);

/*
 * Sends one frame and returns len. Waits for room, unless O_NONBLOCK is set on the data descriptor: then EAGAIN. Less than
 * 14 bytes are no frame and go nowhere. flags are ignored.
 */
ssize_t vde_send(VDECONN *conn, const void *buf, size_t len, int flags);

/* The descriptor that is readable when vde_recv should be called; the same for the connection's whole life. */
int vde_datafd(VDECONN *conn);

/* The descriptor that becomes readable when the connection has ended and is silent before. */
int vde_ctlfd(VDECONN *conn);

/*
 * Ends the connection and returns 0; conn must not be used any more. In a child that inherited the connection by fork, only
 * the child's descriptors are closed.
 */
int vde_close(VDECONN *conn);

/* Frames in a stream of bytes, as vde_plug speaks it: two bytes of length, the highest first, and the frame. */
struct vdestream;
typedef struct vdestream VDESTREAM;

/* Type of an error: a length came that no frame can have. That many bytes are skipped. */
#define PACKET_LENGTH_ERROR 1

/*
 * Makes a converter. Frames found by vdestream_recv are given to frecv, whose result is ignored; errors to
 * ferr with a format and arguments for printf, unless it is NULL. vdestream_send writes to fdout.
 */
VDESTREAM *vdestream_open(void *opaque, int fdout,
		ssize_t (*frecv)(void *opaque, void *buf, size_t count),
		void (*ferr)(void *opaque, int type, char *format, ...));

/*
 * Writes a frame and returns the number of bytes written, 2 more than len; 0 if it is too long for a stream. On
 * a non-blocking descriptor without room it returns -1 with EAGAIN, but a frame that was begun is finished.
 */
ssize_t vdestream_send(VDESTREAM *vdestream, const void *buf, size_t len);

/* Takes the next len bytes that were read from a stream, cut anywhere, and calls frecv for each frame they complete. */
void vdestream_recv(VDESTREAM *vdestream, unsigned char *buf, size_t len);

/* Frees a converter. fdout stays open. */
void vdestream_close(VDESTREAM *vdestream);

#ifdef __cplusplus
}
#endif

#endif
