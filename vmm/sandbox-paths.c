/* SPDX-License-Identifier: BSD-3-Clause */
/* sandbox-paths: what the options need of the file system, and of the network.
 *
 * Most of it is opened once, at the start; later nothing is opened for writing (see
 * sandbox-calls.c).  Sockets are removed at the end.
 */
#include "vmm/sandbox.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/sandbox.h"
#include "common/uri.h"
#include "vmm/cmdline.h"
#include "vmm/disk-dial.h"
#include "vmm/disks.h"
#include "vmm/firmware.h"
#include "vmm/net.h"

static int allow(const char *path, unsigned access, struct error *err)
{
	return path ? sandbox_allow(path, access, err) : 0;
}

static int allow_socket(const char *path, struct error *err)
{
	return path ? sandbox_allow_parent(path, ALLOW_SOCKET, err) : 0;
}

static int look_at_machine(const struct machine_config *m, struct error *err)
{
	int rc = allow("/dev/kvm", ALLOW_READ | ALLOW_WRITE, err);

	if (!rc)
		rc = allow(m->kernel, ALLOW_READ, err);
	if (!rc)
		rc = allow(m->initrd, ALLOW_READ, err);
	if (!rc && !m->kernel)
		rc = allow(m->firmware ? m->firmware : FIRMWARE_DEFAULT, ALLOW_READ, err);
	return rc;
}

/* The file is made here: to make one later would take a right to the whole directory.  What
 * is wrong with it is said when it is opened. */
static int allow_file(const char *path, struct error *err)
{
	int fd = open(path, O_WRONLY | O_CREAT | O_CLOEXEC | O_NONBLOCK | O_NOCTTY, 0600);

	if (fd >= 0)
		close(fd);
	return sandbox_allow(path, ALLOW_WRITE, err);
}

/* A terminal or a pipe is opened anew: see line.c. */
static int look_at_serial(const char *where, struct error *err)
{
	if (!strcmp(where, "stdio"))
		return sandbox_allow("/proc/self/fd/1", ALLOW_WRITE, err);
	if (!strncmp(where, "file:", 5))
		return allow_file(where + 5, err);
	return strncmp(where, "unix:", 5) ? 0 : allow_socket(where + 5, err);
}

/* Who changes /etc/resolv.conf or a file of keys renames a new one over it, and Landlock knows
 * files, not names: the whole directory is needed to find the next one. */
static int allow_resolver(struct error *err)
{
	return sandbox_allow("/etc", ALLOW_READ, err);
}

/* -- disks ------------------------------------------------------------------------------- */

/* Where libnbd looks for certificates by itself, and for the user's name. */
static int allow_tls_defaults(struct error *err)
{
	static const char *const system[] = {
		"/etc/pki/libnbd", "/etc/ssl/certs", "/etc/passwd", "/run/utmp",
	};
	static const char *const home[] = { ".pki/libnbd", ".config/pki/libnbd" };
	const char *dir = getenv("HOME");
	char path[4096];
	int rc = 0;

	for (unsigned i = 0; i < sizeof(system) / sizeof(*system) && !rc; i++)
		rc = sandbox_allow(system[i], ALLOW_READ, err);
	for (unsigned i = 0; i < sizeof(home) / sizeof(*home) && !rc && dir; i++) {
		snprintf(path, sizeof(path), "%s/%s", dir, home[i]);
		rc = sandbox_allow(path, ALLOW_READ, err);
	}
	return rc;
}

static int look_at_uri(const char *text, struct sandbox_needs *n, struct error *err)
{
	struct uri u;
	int rc = uri_parse(text, &u, err);

	if (rc)
		return rc;
	if (!u.socket)
		n->inet = true;
	if (dial_has_name(&u))
		rc = allow_resolver(err);
	if (!rc && u.tls)
		rc = allow_tls_defaults(err);
	if (!rc)
		rc = allow(u.tls_certificates, ALLOW_READ, err);
	if (!rc && u.tls_psk_file)
		rc = sandbox_allow_parent(u.tls_psk_file, ALLOW_READ, err);
	uri_clear(&u);
	return rc;
}

static int look_at_disks(const struct disks *d, struct sandbox_needs *n, struct error *err)
{
	int rc = 0;

	for (unsigned i = 0; i < d->n; i++)
		for (char *const *uri = d->options[i].uri; *uri && !rc; uri++)
			rc = look_at_uri(*uri, n, err);
	return rc;
}

/* -- network cards ------------------------------------------------------------------------ */

static int look_at_nets(const struct cmdline_list *nets, struct sandbox_needs *n, struct error *err)
{
	int rc = 0;

	for (unsigned i = 0; i < nets->n && !rc; i++) {
		struct net_look l = net_look(nets->text[i]);

		if (l.user) {
			n->inet = n->listens = true;
			rc = allow_resolver(err);
		}
		if (!rc && l.tap && l.fd < 0)
			rc = sandbox_allow("/dev/net/tun", ALLOW_READ | ALLOW_WRITE, err);
	}
	return rc;
}

int sandbox_look(const struct cmdline *c, const struct disks *d, struct sandbox_needs *n,
		 struct error *err)
{
	int rc = look_at_machine(&c->machine, err);

	*n = (struct sandbox_needs){ .trap = c->sandbox.trap };
	if (!rc)
		rc = look_at_serial(c->serial, err);
	if (!rc)
		rc = look_at_disks(d, n, err);
	if (!rc)
		rc = look_at_nets(&c->nets, n, err);
	if (!rc)
		rc = allow_socket(c->qmp, err);
	if (!rc)
		rc = allow_socket(c->console, err);
	return rc ? rc : allow_socket(c->agent, err);
}
