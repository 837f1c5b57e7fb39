/*
 * main.c - cbctl: the table of commands
 *
 * SPDX-License-Identifier: ISC
 *
 * Finds the command, takes its options apart and runs it. What a command does is in its own file.
 */
#include "config.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cbctl/cbctl.h"
#include "cbctl/output.h"
#include "cbctl/suggest.h"

#define COMMANDS_MAX 8 /* of one group */

static const struct {
	const char *title;
	const struct command *commands[COMMANDS_MAX];
} groups[] = {
	{"Look",
	 {&command_check, &command_status, &command_list, &command_watch, &command_incidents,
	  &command_log, &command_alerts, &command_agents}},
	{"Decide", {&command_disable, &command_enable, &command_reset, &command_policy}},
	{"Report", {&command_drift, &command_schema_error}},
	{"Set up", {&command_migrate, &command_bench}},
};

#define GROUPS (sizeof(groups) / sizeof(*groups))

/* Every command takes these; they come first in the table that is parsed. */
enum { GLOBAL_SOCKET, GLOBAL_SEGMENT, GLOBAL_JSON, GLOBAL_HELP, GLOBAL_VERSION, GLOBALS };
static const struct option globals[GLOBALS] = {
	[GLOBAL_SOCKET] = {"socket", "PATH"}, [GLOBAL_SEGMENT] = {"segment", "NAME"},
	[GLOBAL_JSON] = {"json", NULL},       [GLOBAL_HELP] = {"help", NULL},
	[GLOBAL_VERSION] = {"version", NULL},
};

/* ---- help ------------------------------------------------------------------------------- */

/* Fits a screen of 24 lines of 80 characters. */
static int print_help(void)
{
	puts("usage: cbctl [--socket PATH] [--segment NAME] [--json] COMMAND [ARGUMENT ...]\n");
	for (size_t i = 0; i < GROUPS; i++) {
		for (int j = 0; j < COMMANDS_MAX && groups[i].commands[j] != NULL; j++) {
			const struct command *command = groups[i].commands[j];

			printf("%-6s  %-12s  %s\n", j == 0 ? groups[i].title : "", command->name,
			       command->summary);
		}
	}
	puts("\n"
	     "cbctl COMMAND --help tells the rest. Everywhere: --socket PATH, --segment NAME,\n"
	     "--json (a document of JSON on standard output, errors too), --help, --version.\n"
	     "Exit status: 0 done (check: enabled), 1 check: disabled, 2 usage, 3 no segment,\n"
	     "4 agent or database down, 5 not allowed, 6 outcome unknown, 7 other, 8 behind.");
	return STATUS_DONE;
}

/* The usage, in as many lines as it takes; an option in brackets is not torn. */
static void print_usage(const char *usage)
{
	int used = printf("usage: ");

	while (*usage != '\0') {
		const char *next = strstr(usage + 1, " [");
		const int length = next != NULL ? (int)(next - usage) : (int)strlen(usage);

		if (used + length > 80)
			used = printf("\n             ");
		used += printf("%.*s", length, usage);
		usage += length;
	}
	puts("\n");
}

static int print_command_help(const struct command *command)
{
	print_usage(command_usage(command));
	fputs(command->help, stdout);
	puts("\nAlso: --socket PATH, --segment NAME, --json; see cbctl --help and cbctl(1).");
	return STATUS_DONE;
}

static int print_version(void)
{
	if (output_is_json()) {
		cJSON *document = json_object(NULL, NULL);

		json_text(document, "version", PACKAGE_VERSION);
		json_text(document, "library_version", cbshm_version());
		json_print(document);
	} else if (strcmp(cbshm_version(), PACKAGE_VERSION) != 0) {
		printf("cbctl %s (with libcbshm %s)\n", PACKAGE_VERSION, cbshm_version());
	} else {
		printf("cbctl %s\n", PACKAGE_VERSION);
	}
	return STATUS_DONE;
}

/* ---- finding the command ---------------------------------------------------------------- */

static const struct command *find_command(const char *name, struct suggestion *near)
{
	suggestion_begin(near, name);
	for (size_t i = 0; i < GROUPS; i++) {
		for (int j = 0; j < COMMANDS_MAX && groups[i].commands[j] != NULL; j++) {
			if (strcmp(groups[i].commands[j]->name, name) == 0)
				return groups[i].commands[j];
			suggestion_consider(near, groups[i].commands[j]->name);
		}
	}
	return NULL;
}

static int fail_unknown_command(const char *name, const struct suggestion *near)
{
	if (near->best[0] != '\0')
		return fail_usage(NULL, "there is no command \"%s\"; did you mean %s?", name,
				  near->best);
	return fail_usage(NULL, "there is no command \"%s\"", name);
}

/*
 * The place of the command in argv: the first word that is neither an option nor the value of a global one. argc if
 * there is none.
 */
static int command_place(int argc, char **argv)
{
	int i = 0;

	while (i < argc && argv[i][0] == '-' && argv[i][1] != '\0' && strcmp(argv[i], "--") != 0) {
		for (int j = 0; j < GLOBALS; j++) {
			if (globals[j].value != NULL && strncmp(argv[i], "--", 2) == 0 &&
			    strcmp(argv[i] + 2, globals[j].name) == 0 && i + 1 < argc)
				i++;
		}
		i++;
	}
	if (i < argc && strcmp(argv[i], "--") == 0)
		i++;
	return i < argc ? i : argc;
}

/* The global options and those of the command, in one table. */
static void join_options(const struct command *command, struct option joined[OPTIONS_MAX + 1])
{
	int used = GLOBALS;

	memset(joined, 0, (OPTIONS_MAX + 1) * sizeof(*joined));
	memcpy(joined, globals, sizeof(globals));
	for (const struct option *option = command != NULL ? command->options : NULL;
	     option != NULL && option->name != NULL && used < OPTIONS_MAX; option++)
		joined[used++] = *option;
}

/* Takes the global options out, so that the command finds its own at their place in its own table. */
static void split_options(struct cbctl *cbctl, struct parsed *parsed)
{
	cbctl->socket = parsed->values[GLOBAL_SOCKET];
	cbctl->segment = parsed->values[GLOBAL_SEGMENT];
	memmove(parsed->values, parsed->values + GLOBALS,
		(OPTIONS_MAX - GLOBALS) * sizeof(*parsed->values));
}

static int check_count(const struct command *command, const struct parsed *parsed)
{
	if (parsed->count < command->least)
		return fail_usage(command, "%s needs %s argument", command->name,
				  parsed->count > 0 ? "one more" : "an");
	if (command->most >= 0 && parsed->count > command->most)
		return fail_usage(command,
				  "%s has no use for \"%s\" (texts with spaces need quotes)",
				  command->name, parsed->words[command->most]);
	return 0;
}

static int run_command(const struct command *command, struct parsed *parsed)
{
	struct cbctl cbctl = {0};
	int status;

	split_options(&cbctl, parsed);
	status = check_count(command, parsed);
	if (status == 0)
		status = command->run(&cbctl, parsed);
	cbshm_close(cbctl.client);
	return status;
}

static int run(int argc, char **argv)
{
	const int place = command_place(argc, argv);
	const struct command *command = NULL;
	const bool has_word = place < argc;
	struct option options[OPTIONS_MAX + 1];
	struct parsed parsed;
	struct suggestion near;
	char message[512];
	int status;

	if (has_word) {
		const char *name = argv[place];

		if (strcmp(name, "help") == 0 && place + 1 < argc) {
			name = argv[place + 1];
			if (name[0] == '-')
				return print_help();
			command = find_command(name, &near);
			return command != NULL ? print_command_help(command)
					       : fail_unknown_command(name, &near);
		}
		command = find_command(name, &near);
		if (command == NULL && strcmp(name, "help") != 0)
			return fail_unknown_command(name, &near);
		/* The command's word goes, its options stay where they are. */
		memmove(argv + place, argv + place + 1, (size_t)(argc - place - 1) * sizeof(*argv));
		argc--;
	}
	join_options(command, options);
	if (!options_parse(argc, argv, options, &parsed, message, sizeof(message)))
		status = fail_usage(command, "%s", message);
	else if (parsed.values[GLOBAL_HELP] != NULL)
		status = command != NULL ? print_command_help(command) : print_help();
	else if (parsed.values[GLOBAL_VERSION] != NULL)
		status = print_version();
	else if (command != NULL)
		status = run_command(command, &parsed);
	else if (has_word)
		status = print_help(); /* cbctl help */
	else
		status = fail_usage(NULL, "no command is given");
	free(parsed.words);
	return status;
}

int main(int argc, char **argv)
{
	output_begin(options_has(argc - 1, argv + 1, "json"));
	return output_end(run(argc - 1, argv + 1));
}
