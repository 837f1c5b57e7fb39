/*
 * resolver.c - getaddrinfo(3) in a thread
 *
 * SPDX-License-Identifier: ISC
 *
 * A job belongs to the thread and to the resolver; who lets go last frees it, since a lookup cannot be broken off.
 */
#include <config.h>

#include <errno.h>
#include <event2/event.h>
#include <netdb.h>
#include <pthread.h>
#include <signal.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "agent/resolver.h"
#include "agent/text.h"

struct job {
	struct resolution *resolutions;
	unsigned count;
	int finished; /* an eventfd(2) */
	int owners;   /* atomic */
};

struct resolver {
	struct job *job;
	struct event *event;
	resolver_done *done;
	void *arg;
};

static void job_release(struct job *job)
{
	/* Release pairs with acquire: what one owner wrote is seen by the one that frees. */
	if (__atomic_sub_fetch(&job->owners, 1, __ATOMIC_ACQ_REL) > 0)
		return;
	for (unsigned i = 0; i < job->count; i++)
		free(job->resolutions[i].host);
	free(job->resolutions);
	close(job->finished);
	free(job);
}

static void look_up(struct resolution *resolution)
{
	const struct addrinfo hints = {.ai_family = AF_UNSPEC, .ai_socktype = SOCK_STREAM};
	struct addrinfo *found = NULL;
	const int rc = getaddrinfo(resolution->host, NULL, &hints, &found);

	resolution->error = rc == 0 ? "" : gai_strerror(rc);
	for (const struct addrinfo *each = found;
	     each != NULL && resolution->count < RESOLVER_ADDRESSES_MAX; each = each->ai_next) {
		char *text = resolution->addresses[resolution->count];

		if (getnameinfo(each->ai_addr, each->ai_addrlen, text,
				sizeof(resolution->addresses[0]), NULL, 0, NI_NUMERICHOST) == 0)
			resolution->count++;
	}
	if (found != NULL)
		freeaddrinfo(found);
}

static void *run(void *arg)
{
	struct job *job = arg;

	for (unsigned i = 0; i < job->count; i++)
		look_up(&job->resolutions[i]);
	eventfd_write(job->finished, 1);
	job_release(job);
	return NULL;
}

static void on_finished(evutil_socket_t fd, short what, void *arg)
{
	const struct resolver *resolver = arg;
	eventfd_t value;

	(void)what;
	/* Reading it orders what the thread wrote before what is read here. */
	if (eventfd_read(fd, &value) == 0)
		resolver->done(resolver->job->resolutions, resolver->job->count, resolver->arg);
}

/* Signals are the main thread's. */
static int start_thread(struct job *job)
{
	pthread_attr_t attributes;
	sigset_t all, before;
	pthread_t thread;
	int rc;

	sigfillset(&all);
	pthread_attr_init(&attributes);
	pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
	pthread_sigmask(SIG_SETMASK, &all, &before);
	rc = pthread_create(&thread, &attributes, run, job);
	pthread_sigmask(SIG_SETMASK, &before, NULL);
	pthread_attr_destroy(&attributes);
	return rc;
}

struct resolver *resolver_start(struct event_base *base, const char *const *hosts, unsigned count,
				resolver_done *done, void *arg)
{
	struct resolver *resolver;
	struct job *job;
	int rc;

	job = memory_new(1, sizeof(*job));
	job->resolutions = memory_new(count, sizeof(*job->resolutions));
	job->count = count;
	job->owners = 2;
	job->finished = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	for (unsigned i = 0; i < count; i++)
		job->resolutions[i].host = memory_copy(hosts[i]);
	rc = job->finished < 0 ? errno : start_thread(job);
	if (rc != 0) {
		job->owners = 1;
		job_release(job);
		errno = rc;
		return NULL;
	}
	resolver = memory_new(1, sizeof(*resolver));
	resolver->job = job;
	resolver->done = done;
	resolver->arg = arg;
	resolver->event = event_new(base, job->finished, EV_READ, on_finished, resolver);
	event_add(resolver->event, NULL);
	return resolver;
}

void resolver_free(struct resolver *resolver)
{
	if (resolver == NULL)
		return;
	event_free(resolver->event);
	job_release(resolver->job);
	free(resolver);
}
