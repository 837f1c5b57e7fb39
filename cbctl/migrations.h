/*
 * migrations.h - the numbered SQL files
 *
 * SPDX-License-Identifier: ISC
 */
#ifndef CBCTL_MIGRATIONS_H
#define CBCTL_MIGRATIONS_H

#include <stdbool.h>
#include <stddef.h>

struct migration {
	int version; /* 1, 2, 3, ... without a gap */
	char *file;  /* "0001_schema.sql" */
};

struct migrations {
	struct migration *list;
	size_t count;
};

/*
 * The files NNNN_*.sql of a directory, in order. False: *message says what is wrong: no such
 * directory, none in it, a number missing or twice. Nothing to be freed then.
 */
bool migrations_find(const char *directory, struct migrations *migrations, char *message,
		     size_t size);
void migrations_free(struct migrations *migrations);

/* The whole text of a file, to be freed with free(); NULL: errno says why (EINVAL: it holds a NUL). */
char *migration_read(const char *directory, const struct migration *migration);

#endif /* CBCTL_MIGRATIONS_H */
