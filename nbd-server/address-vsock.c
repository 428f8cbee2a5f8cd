// SPDX-License-Identifier: BSD-3-Clause
/* address-vsock: between a virtual machine and its host, without a network. */
#include "nbd-server/address-int.h"

#include <errno.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>

#include <linux/vm_sockets.h>

#include "common/options.h"

/* A 32-bit number, all of TEXT. */
static bool parse_u32(const char *text, uint32_t *out)
{
	unsigned long long n;
	char *end;

	if (*text < '0' || *text > '9')
		return false;
	errno = 0;
	n = strtoull(text, &end, 10);
	*out = (uint32_t)n;
	return !errno && !*end && n <= UINT32_MAX;
}

static int vsock_listen(const struct sockaddr_vm *vm, struct address *a, struct error *err)
{
	int fd = socket(AF_VSOCK, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);

	if (fd < 0)
		return error_errno(err, -errno, "Failed to create socket family vsock");
	if (address_add_watched(a, fd))
		return error_errno(err, -errno, "Failed to watch a socket");
	if (bind(fd, (const struct sockaddr *)vm, sizeof(*vm)) < 0)
		return error_errno(err, -errno, "Failed to bind socket to %u:%u", vm->svm_cid,
				   vm->svm_port);
	if (listen(fd, ADDRESS_BACKLOG) < 0)
		return error_errno(err, -errno, "Failed to listen on socket %u:%u", vm->svm_cid,
				   vm->svm_port);
	return 0;
}

int address_vsock(struct json_object *o, struct address *a, struct error *err)
{
	struct sockaddr_vm vm = { .svm_family = AF_VSOCK };
	char *cid = NULL, *port = NULL;
	int rc = opts_require(o, "cid", err);

	if (!rc)
		rc = opts_require(o, "port", err);
	if (!rc)
		rc = opts_str(o, "cid", &cid, err);
	if (!rc)
		rc = opts_str(o, "port", &port, err);
	if (!rc)
		rc = opts_end(o, err);
	if (!rc && !parse_u32(cid, &vm.svm_cid))
		rc = error_set(err, -EINVAL, "Failed to parse cid '%s'", cid);
	if (!rc && !parse_u32(port, &vm.svm_port))
		rc = error_set(err, -EINVAL, "Failed to parse port '%s'", port);
	if (!rc)
		rc = vsock_listen(&vm, a, err);
	free(cid);
	free(port);
	return rc;
}
