/*
 * process.c - telling a child from its parent, and giving it connections of its own
 *
 * SPDX-License-Identifier: ISC
 *
 * Not by pthread_atfork(): its handlers would have to find every client, and do not run in a child of clone(2).
 */
#include "config.h"

#include "libcbshm/process.h"

#include <errno.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#include "libcbshm/pipeline.h"
#include "libcbshm/reports.h"

/* A page of its own. Wiped in a child; where the kernel cannot do that (before Linux 4.14), `wiped` stays false. */
struct process_mark {
	bool wiped;
	pid_t pid;
};

static struct process_mark *mark_new(void)
{
	struct process_mark *mark = mmap(NULL, sizeof(*mark), PROT_READ | PROT_WRITE,
					 MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	if (mark == MAP_FAILED)
		return NULL;
	mark->pid = getpid();
	mark->wiped = madvise(mark, sizeof(*mark), MADV_WIPEONFORK) == 0;
	return mark;
}

static bool is_this_process(const struct process *process)
{
	return process->mark->wiped || process->mark->pid == getpid();
}

static void process_free(struct process *process)
{
	pipelines_free(process->pipelines);
	reports_free(process->reports);
	if (process->mark != NULL)
		munmap(process->mark, sizeof(*process->mark));
	free(process);
}

static void disown(struct process *parents)
{
	pipelines_disown(parents->pipelines);
	reports_disown(parents->reports);
}

/* What a parent left in the memory of its child is only memory: its locks may be held by threads that are not here. */
static void process_close(struct cbshm *client)
{
	struct process *process = atomic_load(&client->process);

	if (!is_this_process(process))
		disown(process);
	while (process != NULL) {
		struct process *older = process->older;

		process_free(process);
		process = older;
	}
}

static struct process *process_new(struct cbshm *client)
{
	struct process *process = calloc(1, sizeof(*process));

	if (process == NULL)
		return NULL;
	process->close = process_close;
	process->mark = mark_new();
	process->pipelines = pipelines_new(client);
	process->reports = reports_new(client);
	if (process->mark == NULL || process->pipelines == NULL || process->reports == NULL) {
		process_free(process);
		return NULL;
	}
	return process;
}

struct process *process_of(struct cbshm *client)
{
	/* Pairs with the exchange below. */
	struct process *found = atomic_load_explicit(&client->process, memory_order_acquire);
	struct process *made;

	if (found != NULL && is_this_process(found))
		return found;
	made = process_new(client);
	if (made == NULL)
		return NULL;
	made->older = found;
	if (atomic_compare_exchange_strong(&client->process, &found, made)) {
		if (made->older != NULL)
			disown(made->older);
		return made;
	}
	process_free(made); /* another thread was faster */
	return found;
}
