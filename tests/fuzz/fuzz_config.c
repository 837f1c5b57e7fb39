/*
 * fuzz_config.c - throws bytes at the reader of cbagent.conf
 *
 * SPDX-License-Identifier: ISC
 *
 * A libFuzzer target like fuzz_session.c, whose head says how it is run. Whatever the file: either every value is
 * in its range, or each line of the message names the file, a line and what is wrong there; and nothing else has been made.
 */
#include <config.h>

#include <errno.h>
#include <grp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/un.h>

#include "agent/alertmanager.h"
#include "agent/config.h"
#include "cbshm/segment.h"
#include "libcbshm/validate.h"
#include "tests/fuzz/target.h"

#define PATH "fuzz.conf"

const char fuzz_corpus[] = "tests/fuzz/corpus-config";

/* In place of libc's, which would spend most of the time on asking the host's directories of users. */
struct group *getgrnam(const char *name)
{
	static struct group adm = {.gr_gid = 4};

	return strcmp(name, "adm") == 0 ? &adm : NULL;
}

static void must(int condition, const char *what)
{
	if (condition)
		return;
	fprintf(stderr, "fuzz_config: %s\n", what);
	abort();
}

static void check_config(const struct config *config)
{
	char reason[512];

	must(segment_name_valid(config->segment_name), "a segment's name that is none");
	must(config->segment_capacity >= CBSHM_CAPACITY_MIN &&
		     config->segment_capacity <= CBSHM_CAPACITY_MAX,
	     "a capacity out of range");
	must((config->segment_mode & ~(mode_t)0644) == 0, "a segment that others may write");
	must((config->socket_mode & ~(mode_t)0777) == 0, "a socket's mode with other bits");
	must(*config->socket_path == '/' &&
		     strlen(config->socket_path) < sizeof(((struct sockaddr_un *)0)->sun_path),
	     "a socket's path that no socket can have");
	must(*config->instance != '\0', "no instance");
	must(config->resend_interval >= 1, "a repetition without end");
	must(alertmanager_check(config->alertmanager_url, reason, sizeof(reason)), reason);
}

/* "FILE:LINE: what", one mistake a line. */
static void check_message(char *message)
{
	char *rest = message, *line, *end;

	must(*message != '\0', "refused without a word");
	while ((line = strsep(&rest, "\n")) != NULL) {
		must(strncmp(line, PATH ":", strlen(PATH ":")) == 0, line);
		must(strtoul(line + strlen(PATH ":"), &end, 10) > 0 && strncmp(end, ": ", 2) == 0 &&
			     end[2] != '\0',
		     line);
	}
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	static char message[1 << 20];
	FILE *file = size > 0 ? fmemopen((void *)(uintptr_t)data, size, "r") : NULL;
	struct config *config = NULL;
	int rc;

	if (file == NULL)
		return 0;
	*message = '\0';
	rc = config_parse(file, PATH, &config, message, sizeof(message));
	fclose(file);
	if (rc == 0) {
		check_config(config);
		config_free(config);
	} else {
		must(rc == -EINVAL && config == NULL, "an error that is none of the file's");
		/* The last line may have been cut. */
		if (strlen(message) < sizeof(message) - 1)
			check_message(message);
	}
	return 0;
}
