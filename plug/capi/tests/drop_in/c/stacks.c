/* Two stacks of libvdestack, on the networks argv[1] and argv[2], talk TCP. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <pthread.h>
#include <sys/socket.h>
#include <unistd.h>
#include <vdestack.h>

#include "check.h"

#define BYTES (4 << 20)

static struct vdestack *stack(char *net, const char *address)
{
	struct vdestack *stack = vde_addstack(net, NULL);
	char text[200];

	CHECK(stack != NULL);
	snprintf(text, sizeof(text), "/bin/ip addr add %s/24 dev vde0; /bin/ip link set vde0 up", address);
	CHECK(vde_stackcmd(stack, text) == 0);
	return stack;
}

static struct sockaddr_in place(const char *address)
{
	return (struct sockaddr_in){
		.sin_family = AF_INET, .sin_port = htons(7777), .sin_addr.s_addr = inet_addr(address)};
}

static void *receive(void *arg)
{
	static unsigned char bytes[1 << 16];
	int fd = accept(*(int *)arg, NULL, NULL);
	size_t have = 0;
	ssize_t got;

	CHECK(fd >= 0);
	while ((got = read(fd, bytes, sizeof(bytes))) > 0)
		for (ssize_t i = 0; i < got; i++, have++)
			CHECK(bytes[i] == have % 251);
	CHECK(got == 0 && have == BYTES);
	close(fd);
	return NULL;
}

int main(int argc, char **argv)
{
	static unsigned char bytes[BYTES];
	struct sockaddr_in server = place("10.7.0.1");
	pthread_t thread;

	CHECK(argc == 3);
	struct vdestack *one = stack(argv[1], "10.7.0.1"), *two = stack(argv[2], "10.7.0.2");
	int listening = vde_msocket(one, AF_INET, SOCK_STREAM, 0), fd = vde_msocket(two, AF_INET, SOCK_STREAM, 0);

	CHECK(listening >= 0 && fd >= 0);
	CHECK(bind(listening, (struct sockaddr *)&server, sizeof(server)) == 0 && listen(listening, 1) == 0);
	CHECK(pthread_create(&thread, NULL, receive, &listening) == 0);
	CHECK(connect(fd, (struct sockaddr *)&server, sizeof(server)) == 0);
	for (size_t i = 0; i < BYTES; i++)
		bytes[i] = i % 251;
	for (size_t done = 0; done < BYTES;) {
		ssize_t sent = write(fd, bytes + done, BYTES - done);

		CHECK(sent > 0);
		done += sent;
	}
	CHECK(close(fd) == 0);
	CHECK(pthread_join(thread, NULL) == 0);
	vde_delstack(two);
	vde_delstack(one);
	return 0;
}
