/* A stack of libvdestack on the network argv[1] sends to 10.6.0.1 and gets all of it back. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <pthread.h>
#include <sys/socket.h>
#include <unistd.h>
#include <vdestack.h>

#include "check.h"

#define BYTES (1 << 20)

static unsigned char bytes[BYTES];

static void *send_all(void *arg)
{
	int fd = *(int *)arg;

	for (size_t done = 0; done < BYTES;) {
		ssize_t sent = write(fd, bytes + done, BYTES - done);

		CHECK(sent > 0);
		done += sent;
	}
	return NULL;
}

int main(int argc, char **argv)
{
	static unsigned char got[BYTES];
	struct sockaddr_in server = {
		.sin_family = AF_INET, .sin_port = htons(7777), .sin_addr.s_addr = inet_addr("10.6.0.1")};
	struct vdestack *stack;
	pthread_t thread;
	int fd = -1;

	CHECK(argc == 2);
	stack = vde_addstack(argv[1], NULL);
	CHECK(stack != NULL);
	CHECK(vde_stackcmd(stack, "/bin/ip addr add 10.6.0.2/24 dev vde0; /bin/ip link set vde0 up") == 0);
	/* The other side may not listen yet. */
	for (int tries = 0; fd < 0; tries++) {
		fd = vde_msocket(stack, AF_INET, SOCK_STREAM, 0);
		CHECK(fd >= 0 && tries < 1000);
		if (connect(fd, (struct sockaddr *)&server, sizeof(server)) != 0) {
			close(fd);
			fd = -1;
			usleep(10000);
		}
	}
	for (size_t i = 0; i < BYTES; i++)
		bytes[i] = i % 251;
	CHECK(pthread_create(&thread, NULL, send_all, &fd) == 0);
	for (size_t have = 0; have < BYTES;) {
		ssize_t more = read(fd, got + have, BYTES - have);

		CHECK(more > 0);
		have += more;
	}
	CHECK(memcmp(bytes, got, BYTES) == 0);
	CHECK(pthread_join(thread, NULL) == 0);
	close(fd);
	vde_delstack(stack);
	return 0;
}
