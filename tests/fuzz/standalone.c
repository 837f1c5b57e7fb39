/*
 * standalone.c - runs a libFuzzer target without libFuzzer: the corpus, then changed copies of it
 *
 * SPDX-License-Identifier: ISC
 *
 * usage: PROGRAM [FILE...]; without files, the target's corpus in the source tree. Speaks TAP. Takes CBSHM_FUZZ_SECONDS
 * (default 10) and CBSHM_FUZZ_SEED (default: another one each time); a failure comes again with the
 * seed that was printed. It is not guided by coverage: libFuzzer finds more, this finds it everywhere.
 */
#include <config.h>

#include <dirent.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "tests/fuzz/target.h"

#define FILES_MAX   256
#define INPUT_MAX   200000
#define CHANGES_MAX 8

struct input {
	uint8_t *bytes;
	size_t size;
};

static struct {
	struct input inputs[FILES_MAX];
	size_t count;
} corpus;

static uint64_t random_state;

/* xorshift64*, so that a seed means the same everywhere. */
static uint64_t random_number(uint64_t below)
{
	random_state ^= random_state >> 12;
	random_state ^= random_state << 25;
	random_state ^= random_state >> 27;
	return (random_state * UINT64_C(0x2545f4914f6cdd1d) >> 16) % below;
}

static void read_file(const char *path)
{
	struct input *input = &corpus.inputs[corpus.count];
	FILE *file = fopen(path, "rb");

	if (file == NULL) {
		printf("Bail out! cannot read %s\n", path);
		exit(1);
	}
	if (corpus.count < FILES_MAX) {
		input->bytes = malloc(INPUT_MAX);
		input->size = input->bytes != NULL ? fread(input->bytes, 1, INPUT_MAX, file) : 0;
		corpus.count++;
	}
	fclose(file);
}

static void read_directory(const char *directory)
{
	DIR *stream = opendir(directory);
	struct dirent *entry;
	char *path;

	if (stream == NULL) {
		printf("Bail out! cannot read %s\n", directory);
		exit(1);
	}
	while ((entry = readdir(stream)) != NULL) {
		if (entry->d_name[0] == '.')
			continue;
		if (asprintf(&path, "%s/%s", directory, entry->d_name) < 0)
			exit(1);
		read_file(path);
		free(path);
	}
	closedir(stream);
}

static void insert(struct input *input, size_t at, const uint8_t *bytes, size_t size)
{
	if (input->size + size > INPUT_MAX)
		return;
	memmove(input->bytes + at + size, input->bytes + at, input->size - at);
	memcpy(input->bytes + at, bytes, size);
	input->size += size;
}

static void insert_word(struct input *input, size_t at)
{
	static const char *const words[] = {"{",
					    "}",
					    "[",
					    "]",
					    "\"",
					    ":",
					    ",",
					    "null",
					    "true",
					    "-1",
					    "1e308",
					    "0.5",
					    "\\u0000",
					    "\\ud83d",
					    "\\",
					    "\xff",
					    "\xf0\x9f\x92\xa5",
					    "\"name\":",
					    "\"oneway\":true,",
					    "io.cbshm.",
					    "[[[[[[[[",
					    "9007199254740993",
					    "\n[",
					    " = ",
					    "\n;",
					    "\n "};
	const char *word = words[random_number(sizeof(words) / sizeof(*words))];

	insert(input, at, (const uint8_t *)word, strlen(word));
}

static void change(struct input *input)
{
	const size_t at = random_number(input->size);
	const struct input *other = &corpus.inputs[random_number(corpus.count)];
	size_t length;

	switch (random_number(7)) {
	case 0:
		input->bytes[at] ^= (uint8_t)(1u << random_number(8));
		break;
	case 1:
		input->bytes[at] = (uint8_t)random_number(256);
		break;
	case 2:
		input->bytes[at] = 0;
		break;
	case 3: /* remove some */
		length = random_number(input->size - at);
		memmove(input->bytes + at, input->bytes + at + length, input->size - at - length);
		input->size -= length;
		break;
	case 4: /* repeat some */
		length = random_number(input->size - at);
		for (uint64_t times = random_number(40); times > 0; times--)
			insert(input, at, input->bytes + at, length);
		break;
	case 5: /* a piece of another input */
		if (other->size > 0)
			insert(input, at, other->bytes, random_number(other->size));
		break;
	default:
		insert_word(input, at);
		break;
	}
}

static void run_changed(struct input *input)
{
	const struct input *origin = &corpus.inputs[random_number(corpus.count)];

	input->size = origin->size;
	memcpy(input->bytes, origin->bytes, origin->size);
	for (uint64_t changes = 1 + random_number(CHANGES_MAX); changes > 0 && input->size > 0;
	     changes--)
		change(input);
	LLVMFuzzerTestOneInput(input->bytes, input->size);
}

static time_t seconds_now(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return now.tv_sec;
}

static long from_environment(const char *name, long otherwise)
{
	const char *text = getenv(name);

	return text != NULL ? atol(text) : otherwise;
}

static void read_corpus(int argc, char **argv)
{
	const char *source = getenv("CBSHM_SOURCE_DIR");
	char *path;

	for (int i = 1; i < argc; i++)
		read_file(argv[i]);
	if (argc > 1)
		return;
	if (asprintf(&path, "%s/%s", source != NULL ? source : ".", fuzz_corpus) < 0)
		exit(1);
	read_directory(path);
	free(path);
}

int main(int argc, char **argv)
{
	const long seconds = from_environment("CBSHM_FUZZ_SECONDS", 10);
	const long seed = from_environment("CBSHM_FUZZ_SEED", (long)time(NULL) ^ getpid());
	struct input input = {malloc(INPUT_MAX), 0};
	unsigned long runs = 0;
	time_t end;

	setvbuf(stdout, NULL, _IOLBF, 0);
	read_corpus(argc, argv);
	printf("1..2\n");
	for (size_t i = 0; i < corpus.count; i++)
		LLVMFuzzerTestOneInput(corpus.inputs[i].bytes, corpus.inputs[i].size);
	printf("ok 1 - %zu inputs of the corpus\n", corpus.count);
	printf("# CBSHM_FUZZ_SEED=%ld\n", seed);
	random_state = (uint64_t)seed * UINT64_C(0x9e3779b97f4a7c15) | 1;
	if (corpus.count > 0 && input.bytes != NULL) {
		for (end = seconds_now() + seconds; seconds_now() < end; runs++)
			run_changed(&input);
	}
	printf("# %lu changed inputs in %ld s\n", runs, seconds);
	printf("%s 2 - changed inputs\n", runs > 0 || seconds == 0 ? "ok" : "not ok");
	for (size_t i = 0; i < corpus.count; i++)
		free(corpus.inputs[i].bytes);
	free(input.bytes);
	return runs > 0 || seconds == 0 ? 0 : 1;
}
