/*
 * handout.c - GetSegment: sends a read-only descriptor of the segment
 *
 * SPDX-License-Identifier: ISC
 *
 * The descriptor is never a copy of the writer's, which can write. It is opened anew for each reply, O_RDONLY; and whoever
 * opens it once more through /proc meets the file's own mode, which lets only the agent's user write.
 *
 * The kernel keeps descriptors that are sent and not received, and refuses more than RLIMIT_NOFILE of a user's. So a
 * connection gets no second one before it has received the first: there are never more than there are connections.
 */
#include <config.h>

#include <errno.h>
#include <linux/sockios.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include "agent/handout.h"
#include "agent/peer.h"
#include "agent/segment_writer.h"

static bool unopened(int error, struct fault *fault)
{
	if (error == -EMFILE || error == -ENFILE)
		return fault_set(fault, REPLY_LIMIT_EXCEEDED, NULL,
				 "the agent has no file descriptor left: ask again later");
	return fault_set(fault, REPLY_LIMIT_EXCEEDED, NULL,
			 "the segment cannot be opened just now (%s): ask again in a second",
			 error == -ESTALE ? "it has lost its name" : strerror(-error));
}

/* As open(2) would decide. */
static bool may_read(int descriptor, int socket, const struct peer *peer, struct fault *fault)
{
	bool member = false;
	struct stat file;
	mode_t needed = S_IROTH;
	int r = fstat(descriptor, &file) < 0 ? -errno : 0;

	if (r == 0 && peer->uid != 0 && peer->uid != file.st_uid)
		r = peer_in_group(socket, peer, file.st_gid, &member);
	if (r < 0)
		return unopened(r, fault);
	if (peer->uid == file.st_uid)
		needed = S_IRUSR;
	else if (member)
		needed = S_IRGRP;
	if (peer->uid == 0 || (file.st_mode & needed) != 0)
		return true;
	return fault_set(fault, REPLY_PERMISSION_DENIED, NULL,
			 "user %s (uid %ju) may not read the segment: that takes membership of the "
			 "agent's [segment] group",
			 peer->user, (uintmax_t)peer->uid);
}

static char *make_reply(const char *name)
{
	cJSON *parameters = cJSON_CreateObject();

	if (cJSON_AddStringToObject(parameters, "name", name) != NULL &&
	    cJSON_AddNumberToObject(parameters, "descriptor", 0) != NULL)
		return message_reply(parameters);
	cJSON_Delete(parameters);
	return NULL;
}

/* So short a message goes into the socket whole or not at all. */
static enum handout send_with(int socket, char *reply, int descriptor, struct fault *fault)
{
	union {
		struct cmsghdr header;
		char room[CMSG_SPACE(sizeof(int))];
	} control = {.header = {.cmsg_len = CMSG_LEN(sizeof(int)),
				.cmsg_level = SOL_SOCKET,
				.cmsg_type = SCM_RIGHTS}};
	struct iovec text = {.iov_base = reply, .iov_len = strlen(reply) + 1};
	const struct msghdr message = {.msg_iov = &text,
				       .msg_iovlen = 1,
				       .msg_control = &control,
				       .msg_controllen = sizeof(control)};
	ssize_t sent;

	memcpy(CMSG_DATA(&control.header), &descriptor, sizeof(descriptor));
	do {
		sent = sendmsg(socket, &message, MSG_DONTWAIT | MSG_NOSIGNAL);
	} while (sent < 0 && errno == EINTR);
	if (sent == (ssize_t)text.iov_len)
		return HANDOUT_SENT;
	if (sent < 0 && (errno == EAGAIN || errno == EWOULDBLOCK))
		return HANDOUT_LATER;
	if (sent >= 0 || errno != ETOOMANYREFS)
		return HANDOUT_LOST;
	fault_set(fault, REPLY_LIMIT_EXCEEDED, NULL,
		  "too many descriptors are on their way to clients that do not receive them: ask "
		  "again later");
	return HANDOUT_REFUSED;
}

/* Has the peer received all that was sent to it, descriptors included? */
static bool all_received(int socket)
{
	int rest = 0;

	return ioctl(socket, SIOCOUTQ, &rest) == 0 && rest == 0;
}

enum handout handout_send(const struct segment_writer *segment, int socket, const struct peer *peer,
			  bool *unreceived, struct fault *fault)
{
	enum handout result = HANDOUT_REFUSED;
	char *reply;
	int fd;

	if (*unreceived && !all_received(socket)) {
		fault_set(fault, REPLY_LIMIT_EXCEEDED, NULL,
			  "receive the descriptor of the call before, and all else that was sent, "
			  "before asking for another one");
		return HANDOUT_REFUSED;
	}
	*unreceived = false;
	fd = segment_writer_open_reader(segment);
	if (fd < 0) {
		unopened(fd, fault);
		return HANDOUT_REFUSED;
	}
	if (may_read(fd, socket, peer, fault)) {
		reply = make_reply(segment_writer_name(segment));
		result = reply != NULL ? send_with(socket, reply, fd, fault) : HANDOUT_LOST;
		free(reply);
	}
	close(fd);
	*unreceived = result == HANDOUT_SENT;
	return result;
}
