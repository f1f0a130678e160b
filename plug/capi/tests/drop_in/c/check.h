/* CHECK(condition): says which one failed, with errno, and ends the program. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define CHECK(condition)                                                                                    \
	do {                                                                                                \
		if (!(condition)) {                                                                         \
			fprintf(stderr, "%s:%d: not so: %s (%s)\n", __FILE__, __LINE__, #condition,         \
				strerror(errno));                                                           \
			exit(1);                                                                            \
		}                                                                                           \
	} while (0)
