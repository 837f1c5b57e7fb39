/*
 * peer.c - asks the kernel who a peer is, and the name service what the user is called
 *
 * SPDX-License-Identifier: ISC
 *
 * getpwuid_r(3) may ask a directory server and so may block the loop. It is asked once an hour for a
 * uid, and only for peers that may report: who has no rights here cannot make the agent ask. Group membership
 * comes from the kernel, never from the name service.
 */
#include <config.h>

#include <errno.h>
#include <inttypes.h>
#include <pwd.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "agent/peer.h"
#include "libcbshm/name.h"

#define NAMES            256  /* users remembered */
#define NAME_LIFETIME    3600 /* seconds */
#define GROUPS_AT_FIRST  64
#define PASSWD_ROOM      16384
#define PROC_PATH_LENGTH sizeof("/proc/2147483647/exe")

struct known_name {
	uid_t uid;
	time_t until; /* CLOCK_MONOTONIC; 0 = free */
	char name[sizeof(((struct peer *)0)->user)];
};

struct peer_names {
	struct known_name known[NAMES];
	unsigned next; /* the one that is replaced when a new uid comes */
};

int peer_names_new(struct peer_names **names)
{
	*names = calloc(1, sizeof(**names));
	return *names != NULL ? 0 : -ENOMEM;
}

void peer_names_free(struct peer_names *names)
{
	free(names);
}

static time_t seconds_now(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return now.tv_sec;
}

static void number_as_name(uid_t uid, char *name, size_t size)
{
	snprintf(name, size, "%ju", (uintmax_t)uid);
}

/* Fit to go into a JSON text and an audit log? */
static bool is_printable(const char *text)
{
	return utf8_valid(text, strlen(text)) && !utf8_has_control(text, "");
}

static void ask_name(uid_t uid, char *name, size_t size)
{
	char room[PASSWD_ROOM];
	struct passwd entry, *found = NULL;

	if (getpwuid_r(uid, &entry, room, sizeof(room), &found) == 0 && found != NULL &&
	    *found->pw_name != '\0' && strlen(found->pw_name) < size &&
	    is_printable(found->pw_name))
		strcpy(name, found->pw_name);
	else
		number_as_name(uid, name, size);
}

static const char *find_name(struct peer_names *names, uid_t uid)
{
	const time_t now = seconds_now();
	struct known_name *entry = NULL;

	for (unsigned i = 0; i < NAMES && entry == NULL; i++) {
		if (names->known[i].until != 0 && names->known[i].uid == uid)
			entry = &names->known[i];
	}
	if (entry != NULL && now < entry->until)
		return entry->name;
	if (entry == NULL) {
		entry = &names->known[names->next];
		names->next = (names->next + 1) % NAMES;
	}
	ask_name(uid, entry->name, sizeof(entry->name));
	entry->uid = uid;
	entry->until = now + NAME_LIFETIME;
	return entry->name;
}

static void find_exe(pid_t pid, char *exe, size_t size)
{
	char path[PROC_PATH_LENGTH];
	ssize_t length = -1;

	/* 0: a process of another pid namespace */
	if (pid > 0) {
		snprintf(path, sizeof(path), "/proc/%d/exe", (int)pid);
		length = readlink(path, exe, size);
	}
	/* A path that does not fit is not known: half of one would name another file. */
	exe[length > 0 && (size_t)length < size ? length : 0] = '\0';
	if (!is_printable(exe))
		exe[0] = '\0';
}

static bool is_member(gid_t group, gid_t primary, const gid_t *groups, size_t count)
{
	if (group == (gid_t)-1)
		return false;
	if (group == primary)
		return true;
	for (size_t i = 0; i < count; i++) {
		if (groups[i] == group)
			return true;
	}
	return false;
}

/* The supplementary groups; *groups is to be freed. */
static int find_groups(int fd, gid_t **groups, size_t *count)
{
	socklen_t size = GROUPS_AT_FIRST * sizeof(gid_t);
	gid_t *room = malloc(size);

	if (room == NULL)
		return -ENOMEM;
	while (getsockopt(fd, SOL_SOCKET, SO_PEERGROUPS, room, &size) < 0) {
		int error = errno;

		free(room);
		if (error != ERANGE)
			return -error;
		room = malloc(size); /* which the kernel has set to what it takes */
		if (room == NULL)
			return -ENOMEM;
	}
	*groups = room;
	*count = size / sizeof(gid_t);
	return 0;
}

static int find_access(int fd, const struct ucred *cred, gid_t group, gid_t admin_group,
		       enum access *access)
{
	gid_t *groups = NULL;
	size_t count = 0;
	int r;

	if (cred->uid == 0 || cred->uid == geteuid()) {
		*access = ACCESS_ADMIN;
		return 0;
	}
	r = find_groups(fd, &groups, &count);
	if (r < 0)
		return r;
	if (is_member(admin_group, cred->gid, groups, count))
		*access = ACCESS_ADMIN;
	else if (is_member(group, cred->gid, groups, count))
		*access = ACCESS_REPORT;
	else
		*access = ACCESS_ANYBODY;
	free(groups);
	return 0;
}

int peer_in_group(int fd, const struct peer *peer, gid_t group, bool *member)
{
	gid_t *groups;
	size_t count;
	int r = find_groups(fd, &groups, &count);

	if (r < 0)
		return r;
	*member = is_member(group, peer->gid, groups, count);
	free(groups);
	return 0;
}

int peer_identify(int fd, gid_t group, gid_t admin_group, struct peer_names *names,
		  struct peer *peer, enum access *access)
{
	struct ucred cred;
	socklen_t size = sizeof(cred);
	int r;

	if (getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &cred, &size) < 0)
		return -errno;
	r = find_access(fd, &cred, group, admin_group, access);
	if (r < 0)
		return r;
	peer->uid = cred.uid;
	peer->gid = cred.gid;
	peer->pid = cred.pid;
	if (*access == ACCESS_ANYBODY)
		number_as_name(cred.uid, peer->user, sizeof(peer->user));
	else
		strcpy(peer->user, find_name(names, cred.uid));
	find_exe(cred.pid, peer->exe, sizeof(peer->exe));
	return 0;
}
