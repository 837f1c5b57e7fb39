/*
 * migrations.c - finds and reads the numbered SQL files
 *
 * SPDX-License-Identifier: ISC
 *
 * Knows no database. Other files in the directory are left alone.
 */
#include "config.h"

#include "cbctl/migrations.h"

#include <dirent.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define DIGITS 4

/* NNNN_*.sql */
static bool is_migration(const char *name)
{
	const size_t length = strlen(name);

	return strspn(name, "0123456789") == DIGITS && name[DIGITS] == '_' && length > DIGITS + 5 &&
	       strcmp(name + length - 4, ".sql") == 0;
}

static int compare(const void *a, const void *b)
{
	return strcmp(((const struct migration *)a)->file, ((const struct migration *)b)->file);
}

static bool add(struct migrations *migrations, const char *name)
{
	struct migration *list = realloc(migrations->list, (migrations->count + 1) * sizeof(*list));

	if (list == NULL)
		return false;
	migrations->list = list;
	list[migrations->count].version = atoi(name);
	list[migrations->count].file = strdup(name);
	return list[migrations->count++].file != NULL;
}

static bool read_directory(const char *path, struct migrations *migrations, char *message,
			   size_t size)
{
	DIR *directory = opendir(path);
	struct dirent *entry;
	bool complete = true;

	if (directory == NULL) {
		snprintf(message, size,
			 "cannot read the directory of the migrations, %s: %s; give it with --sql",
			 path, strerror(errno));
		return false;
	}
	while (complete && (entry = readdir(directory)) != NULL) {
		if (is_migration(entry->d_name))
			complete = add(migrations, entry->d_name);
	}
	closedir(directory);
	if (!complete)
		snprintf(message, size, "out of memory");
	return complete;
}

/* 1, 2, 3, ... */
static bool check_numbers(const char *path, const struct migrations *migrations, char *message,
			  size_t size)
{
	const struct migration *list = migrations->list;

	if (migrations->count == 0) {
		snprintf(message, size, "there are no migrations (0001_*.sql, ...) in %s", path);
		return false;
	}
	for (size_t i = 0; i < migrations->count; i++) {
		if (i > 0 && list[i].version == list[i - 1].version) {
			snprintf(message, size,
				 "two migrations in %s have the number %04d: %s and %s", path,
				 list[i].version, list[i - 1].file, list[i].file);
			return false;
		}
		if (list[i].version != (int)i + 1) {
			snprintf(message, size, "migration %04d is missing in %s (there is %s)",
				 (int)i + 1, path, list[i].file);
			return false;
		}
	}
	return true;
}

bool migrations_find(const char *directory, struct migrations *migrations, char *message,
		     size_t size)
{
	bool good;

	memset(migrations, 0, sizeof(*migrations));
	good = read_directory(directory, migrations, message, size);
	if (good && migrations->count > 0)
		qsort(migrations->list, migrations->count, sizeof(*migrations->list), compare);
	good = good && check_numbers(directory, migrations, message, size);
	if (!good)
		migrations_free(migrations);
	return good;
}

void migrations_free(struct migrations *migrations)
{
	for (size_t i = 0; i < migrations->count; i++)
		free(migrations->list[i].file);
	free(migrations->list);
	memset(migrations, 0, sizeof(*migrations));
}

static char *read_all(FILE *file)
{
	size_t used = 0, size = 65536;
	char *text = malloc(size), *larger;

	while (text != NULL) {
		used += fread(text + used, 1, size - used - 1, file);
		if (used < size - 1)
			break;
		size *= 2;
		larger = realloc(text, size);
		if (larger == NULL)
			free(text);
		text = larger;
	}
	if (text == NULL)
		return NULL;
	text[used] = '\0';
	if (ferror(file) || strlen(text) != used) {
		errno = ferror(file) ? EIO : EINVAL;
		free(text);
		return NULL;
	}
	return text;
}

char *migration_read(const char *directory, const struct migration *migration)
{
	char path[4096];
	char *text;
	FILE *file;

	if (snprintf(path, sizeof(path), "%s/%s", directory, migration->file) >=
	    (int)sizeof(path)) {
		errno = ENAMETOOLONG;
		return NULL;
	}
	file = fopen(path, "re");
	if (file == NULL)
		return NULL;
	text = read_all(file);
	const int saved_errno = errno;

	fclose(file);
	errno = saved_errno;
	return text;
}
