/* Loads the library argv[1], opens the networks argv[2...], closes them, unloads it, and all again. */
#define _GNU_SOURCE
#include <dlfcn.h>

#include "check.h"

int main(int argc, char **argv)
{
	for (int round = 0; round < 3; round++) {
		void *library = dlopen(argv[1], RTLD_NOW | RTLD_LOCAL);
		CHECK(library != NULL);
		void *(*open_real)(const char *, const char *, int, void *) = dlsym(library, "vde_open_real");
		int (*close_it)(void *) = dlsym(library, "vde_close");
		CHECK(open_real && close_it && argc > 2);
		for (int i = 2; i < argc; i++) {
			void *conn = open_real(argv[i], "loads", 1, NULL);
			CHECK(conn != NULL);
			CHECK(close_it(conn) == 0);
		}
		CHECK(dlclose(library) == 0);
	}
	return 0;
}
