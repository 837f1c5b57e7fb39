/*
 * lookup.c - handles: from a name to a decision word, and back again when that has moved
 *
 * SPDX-License-Identifier: ISC
 *
 * A handle is two words that the inline check reads, changed here while it does. Nothing is locked,
 * because nothing can go wrong: a generation is handed out once, so a `live` fits the word of its
 * own breaker and no other, whichever mixture of an old and a new pair a check sees. That of the
 * index word has INDEX set, and so fits no breaker's, though the generation in it is some
 * breaker's: see live_fits(). A handle that was left with an old pair does not fit its word any
 * more and comes back here.
 */
#include "config.h"

#include "libcbshm/lookup.h"

#include <pthread.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>

#include "cbshm/latch.h"
#include "libcbshm/index.h"

/* How often a breaker may go and come back under one call. */
#define RESOLVE_TRIES 8

#define FOLLOW_TRIES 1000

/* What a handle points at while nothing is attached; it never fits CBSHM_LIVE_NEVER. */
static const uint64_t no_word = 0;

static struct binding binding_none(void)
{
	return (struct binding){NULL, &no_word, CBSHM_LIVE_NEVER, BINDING_UNKNOWN};
}

/*
 * The index word is read before the search: a breaker that comes during it changes the word after
 * this, and the next check searches again. MOVED is kept out of `live`, or nobody would follow.
 */
static struct binding binding_search(struct mapping *mapping, const struct name_key *key)
{
	const uint64_t *index_word = &segment_header(&mapping->view)->index_word;
	uint64_t before = word_load(index_word);
	struct index_hit hit;

	if (index_find(&mapping->view, key, &hit))
		return (struct binding){mapping, segment_word(&mapping->view, hit.slot),
					word_generation(hit.word) << CBSHM_WORD_GENERATION_SHIFT,
					hit.slot};
	return (struct binding){mapping, index_word, (uint32_t)(before & ~CBSHM_WORD_MOVED),
				BINDING_UNKNOWN};
}

/* The caller holds the try-flag. */
static void handle_set(struct handle *handle, const struct binding *binding)
{
	bool policy = atomic_load_explicit(&handle->stale, memory_order_relaxed) != 0;

	atomic_store_explicit(&handle->live, binding->live, memory_order_relaxed);
	__atomic_store_n(&handle->breaker.live, policy ? CBSHM_LIVE_NEVER : binding->live,
			 __ATOMIC_RELAXED);
	__atomic_store_n(&handle->breaker.word, binding->word, __ATOMIC_RELEASE);
}

/* If somebody else is just changing the handle, the answer is given without remembering it, and false returned. */
static bool handle_rebind(struct handle *handle, struct binding *binding)
{
	struct mapping *mapping = segment_current(handle->client);

	*binding = mapping ? binding_search(mapping, &handle->key) : binding_none();
	if (!try_enter(&handle->binding))
		return false;
	handle_set(handle, binding);
	try_leave(&handle->binding);
	return true;
}

/* What the handle says at the moment, which may be a mixture; see above. */
static struct binding handle_binding(const struct handle *handle)
{
	struct binding binding = binding_none();

	binding.word = __atomic_load_n(&handle->breaker.word, __ATOMIC_ACQUIRE);
	binding.live = __atomic_load_n(&handle->breaker.live, __ATOMIC_RELAXED);
	if (binding.live == CBSHM_LIVE_NEVER)
		binding.live = atomic_load_explicit(&handle->live, memory_order_relaxed);
	binding.mapping = segment_mapping_of(handle->client, binding.word);
	if (binding.mapping) {
		const struct segment_view *view = &binding.mapping->view;

		if (binding.word != &segment_header(view)->index_word)
			binding.slot = (uint32_t)(binding.word - segment_word(view, 0));
	}
	return binding;
}

/* Does the binding still hold under this value of its word? */
static bool binding_fits(const struct binding *binding, uint64_t word)
{
	if (binding->slot == BINDING_UNKNOWN)
		return (uint32_t)(word & ~CBSHM_WORD_MOVED) == binding->live;
	return live_fits(binding->live, word);
}

void handle_resolve(struct handle *handle, struct resolved *resolved)
{
	struct binding *binding = &resolved->binding;

	*binding = handle_binding(handle);
	for (int i = 0; i < RESOLVE_TRIES; i++) {
		if (!binding->mapping) {
			resolved->basis = CBSHM_BASIS_NO_SEGMENT;
			if (segment_attach(handle->client, false) != 0)
				return;
			handle_rebind(handle, binding);
		}
		resolved->word = word_load(binding->word);
		if ((resolved->word & CBSHM_WORD_MOVED) &&
		    segment_follow(handle->client, binding->mapping, false)) {
			handle_rebind(handle, binding);
			continue; /* which may have been replaced as well by now */
		}
		resolved->basis = binding->slot == BINDING_UNKNOWN ? CBSHM_BASIS_UNKNOWN
								   : CBSHM_BASIS_SEGMENT;
		if (binding_fits(binding, resolved->word))
			return;
		handle_rebind(handle, binding);
		if (binding->slot == BINDING_UNKNOWN &&
		    !(word_load(binding->word) & CBSHM_WORD_MOVED))
			break; /* not there at a moment of this call: that is an answer */
	}
	resolved->basis = CBSHM_BASIS_UNKNOWN;
}

/*
 * The lock of all clients' lists, not of the handles. One for the process, since fork(2) has to wait for it: a child
 * would wait for ever for a thread that it does not have, or find half a list.
 */
static pthread_mutex_t handles_mutex = PTHREAD_MUTEX_INITIALIZER;
static pthread_once_t handles_once = PTHREAD_ONCE_INIT;

static void handles_enter(void)
{
	pthread_mutex_lock(&handles_mutex);
}

static void handles_leave(void)
{
	pthread_mutex_unlock(&handles_mutex);
}

static void handles_watch_forks(void)
{
	pthread_atfork(handles_enter, handles_leave, handles_leave);
}

static void handles_lock(void)
{
	pthread_once(&handles_once, handles_watch_forks);
	handles_enter();
}

static void handles_add(struct segment_reader *reader, struct handle *handle)
{
	handles_lock();
	handle->next = reader->handles;
	if (handle->next)
		handle->next->previous = handle;
	reader->handles = handle;
	handles_leave();
}

static void handles_remove(struct segment_reader *reader, struct handle *handle)
{
	handles_lock();
	if (handle->next)
		handle->next->previous = handle->previous;
	if (handle->previous)
		handle->previous->next = handle->next;
	else
		reader->handles = handle->next;
	handles_leave();
}

void handle_follow(struct handle *handle)
{
	struct binding ignored;

	handle_rebind(handle, &ignored);
}

/* A handle that another thread is just binding, to the mapping before perhaps, is tried again until that is done. */
void handles_follow(struct cbshm *client)
{
	handles_lock();
	for (struct handle *handle = client->reader->handles; handle; handle = handle->next) {
		for (int i = 0; i < FOLLOW_TRIES && !handle_rebind(handle, &(struct binding){0});
		     i++)
			sched_yield();
	}
	handles_leave();
}

int cbshm_breaker_open(struct cbshm *client, const char *name, struct cbshm_breaker **breaker)
{
	struct name_key key;
	int ignored;

	if (!breaker)
		return CBSHM_ERR_INVALID;
	*breaker = NULL;
	if (!client || !name_key_set(&key, name))
		return CBSHM_ERR_INVALID;
	struct handle *handle = calloc(1, sizeof(*handle));
	if (!handle)
		return CBSHM_ERR_MEMORY;
	handle->client = client;
	handle->key = key;
	memcpy(handle->name, name, key.length);
	handles_add(client->reader, handle);
	segment_newest(client, &ignored);
	handle_follow(handle);
	*breaker = &handle->breaker;
	return 0;
}

void cbshm_breaker_close(struct cbshm_breaker *breaker)
{
	if (!breaker)
		return;
	struct handle *handle = handle_of(breaker);
	handles_remove(handle->client->reader, handle);
	free(handle);
}

int cbshm_breaker_set_stale_policy(struct cbshm_breaker *breaker, enum cbshm_stale_policy policy,
				   int64_t max_stale_us)
{
	bool is_static = policy == CBSHM_FAIL_STATIC;

	if (!breaker || (unsigned int)policy > CBSHM_FAIL_CLOSED ||
	    (!is_static &&
	     (max_stale_us < CBSHM_MAX_STALE_MIN_US || max_stale_us > CBSHM_MAX_STALE_MAX_US)))
		return CBSHM_ERR_INVALID;
	struct handle *handle = handle_of(breaker);
	uint64_t stale = is_static ? 0 : (uint64_t)max_stale_us * 1000 << STALE_TIME_SHIFT | policy;
	while (!try_enter(&handle->binding))
		sched_yield(); /* for the few loads of a search, of another thread */
	atomic_store_explicit(&handle->stale, stale, memory_order_relaxed);
	handle_set(handle, &(struct binding){.word = handle->breaker.word, .live = handle->live});
	try_leave(&handle->binding);
	return 0;
}

const char *cbshm_breaker_name(const struct cbshm_breaker *breaker)
{
	return handle_of(breaker)->name;
}
