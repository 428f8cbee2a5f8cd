/* SPDX-License-Identifier: BSD-3-Clause */
/* cmdline-sandbox: the options of the sandbox, and what the other options need
 * of the file system: where their sockets are made, which credentials they read.
 *
 * Images need --allow-dir, even those that options name: what an image refers to
 * was chosen by a stranger, and the kernel cannot tell the two apart.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "common/authz.h"
#include "common/log.h"
#include "nbd-server/activation.h"
#include "nbd-server/cmdline-int.h"
#include "nbd-server/commands.h"
#include "nbd-server/monitor.h"

void cmdline_take_sandbox(struct cmdline *c, const char *text)
{
	if (strcmp(text, "on") && strcmp(text, "off"))
		cmdline_refuse("--sandbox", "must be on or off");
	c->sandbox.off = !strcmp(text, "off");
}

void cmdline_take_allow_dir(struct cmdline *c, const char *text)
{
	struct sandbox *s = &c->sandbox;

	s->dirs = reallocarray(s->dirs, s->n_dirs + 1, sizeof(*s->dirs));
	if (!s->dirs)
		cmdline_refuse("--allow-dir", "Out of memory");
	s->dirs[s->n_dirs++] = text;
}

void cmdline_take_user(struct cmdline *c, const char *text)
{
	c->sandbox.user = text;
}

void cmdline_take_core(struct cmdline *c, const char *text)
{
	c->sandbox.core = true;
}

static int allow_string(struct json_object *o, const char *key, bool parent, unsigned access,
			struct error *err)
{
	struct json_object *v;
	const char *path;

	if (!json_object_object_get_ex(o, key, &v) || !json_object_is_type(v, json_type_string))
		return 0;
	path = json_object_get_string(v);
	return parent ? sandbox_allow_parent(path, access, err) : sandbox_allow(path, access, err);
}

static int allow_setting(const struct setting *s, struct json_object *o, struct error *err)
{
	struct json_object *addr = json_object_object_get(o, "addr");
	struct json_object *data = json_object_object_get(addr, "data");
	int rc;

	if (!strcmp(s->def->name, "nbd-server"))
		return allow_string(data ? data : addr, "path", true, ALLOW_SOCKET, err);
	if (!strcmp(s->def->name, "chardev"))
		return allow_string(o, "path", true, ALLOW_SOCKET, err);
	if (!strcmp(s->def->name, "blockdev"))
		return allow_string(o, "crash-log-dir", false, ALLOW_READ | ALLOW_WRITE, err) ?:
		       allow_string(o, "sidecar-dir", false, ALLOW_READ | ALLOW_WRITE, err);
	if (strcmp(s->def->name, "object"))
		return 0;
	/* A list that is renamed over the old one is another file: by its directory. */
	if (!strcmp(json_object_get_string(json_object_object_get(o, "qom-type")) ?: "",
		    authz_listfile_class.name))
		return allow_string(o, "filename", true, ALLOW_READ, err);
	rc = allow_string(o, "dir", false, ALLOW_READ, err);
	if (!rc)
		rc = allow_string(o, "file", false, ALLOW_READ, err);
	return rc ? rc : allow_string(o, "filename", false, ALLOW_READ, err);
}

static bool has_setting(const struct cmdline *c, const char *name)
{
	for (unsigned i = 0; i < c->n_settings; i++) {
		if (!strcmp(c->settings[i].def->name, name))
			return true;
	}
	return false;
}

/* quick.c's socket: given, or private and removed with its directory at the end. */
static int allow_quick(const struct cmdline *c, struct error *err)
{
	const struct quick *q = &c->quick;
	const char *dir;
	int rc;

	if (!q->n_files)
		return 0;
	if (q->socket)
		return sandbox_allow_parent(q->socket, ALLOW_SOCKET, err);
	if (has_setting(c, "nbd-server") || activation_count())
		return 0;
	rc = quick_private_dir(&dir, err);
	if (!rc)
		rc = sandbox_allow(dir, ALLOW_SOCKET, err);
	return rc ? rc : sandbox_allow_parent(dir, ALLOW_DIRS, err);
}

int cmdline_sandbox(struct cmdline *c, struct error *err)
{
	int rc = c->pidfile ? sandbox_allow_parent(c->pidfile, ALLOW_REMOVE, err) : 0;

	if (!rc && c->fleece_dir)
		rc = sandbox_allow(c->fleece_dir, ALLOW_READ | ALLOW_WRITE, err);
	if (!rc && c->state.dir)
		rc = sandbox_allow(c->state.dir, ALLOW_READ | ALLOW_WRITE, err);
	for (unsigned i = 0; i < c->n_settings && !rc; i++) {
		struct error ignored = ERROR_INIT;	/* it is told when the setting is run */
		struct json_object *o = cmdline_object(&c->settings[i], &ignored);

		rc = o ? allow_setting(&c->settings[i], o, err) : 0;
		json_object_put(o);
	}
	if (!rc)
		rc = allow_quick(c, err);
	c->sandbox.late = !c->sandbox.n_dirs && !has_setting(c, "monitor");
	return rc ? rc : sandbox_start(&c->sandbox, err);
}

void cmdline_sandbox_tell(const struct cmdline *c)
{
	if (!c->sandbox.off && !c->sandbox.n_dirs && has_setting(c, "monitor"))
		log_info("no --allow-dir is given: a monitor's client can open every file that this user can");
}
