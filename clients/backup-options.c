// SPDX-License-Identifier: BSD-3-Clause
/* backup-options: the command line of `merino backup`, and which of its words go together. */
#include <stdlib.h>
#include <string.h>

#include "clients/backup.h"
#include "clients/cli.h"
#include "clients/pull-source.h"
#include "clients/quiesce.h"
#include "common/log.h"
#include "common/uri.h"

enum {
	OPT_TO = CLI_LONG,
	OPT_SOCKET,
	OPT_FULL,
	OPT_NAME,
	OPT_BITMAP,
	OPT_COMPRESS,
	OPT_LIMIT,
	OPT_TIMEOUT,
	OPT_MERINOD,
	OPT_TLS_CERTIFICATES,
	OPT_TLS_PSK_FILE,
	OPT_TLS_USERNAME,
	OPT_QUIESCE,
	OPT_QUIESCE_TIMEOUT,
	OPT_HOOK_BEFORE,
	OPT_HOOK_AFTER,
	OPT_JSON,
};

enum { REQUESTS_DEFAULT = 32, REQUESTS_MAX = 256, TIMEOUT_DEFAULT = 60, TIMEOUT_MAX = 86400 };

static const struct cli_option table[] = {
	{ OPT_TO, "to", "DIR", "the repository; made if it is not there" },
	{ OPT_SOCKET, "socket", "PATH", "merinod's QMP socket: back up its disks" },
	{ OPT_FULL, "full", NULL, "copy everything, whatever is there already" },
	{ OPT_NAME, "name", "POINT", "name of the restore point (default: the time)" },
	{ OPT_BITMAP, "bitmap", "NAME", "URIs: the bitmap of what changed since the last point" },
	{ OPT_COMPRESS, "compress", "[=zlib|zstd]", "compress what is stored (default: zstd)" },
	{ OPT_LIMIT, "limit", "N", "read N bytes per second at most (20M)" },
	{ 'C', "connections", "N", "use up to N connections (default 4, 1 without multi-conn)" },
	{ 'R', "requests", "N", "requests in flight (default 32)" },
	{ OPT_TIMEOUT, "timeout", "S", "seconds to go on without an answer or a connection (60)" },
	{ OPT_MERINOD, "merinod", "FILE", "the daemon for images that nothing has open" },
	{ OPT_QUIESCE, "quiesce", "[=AGENT]", "--socket: freeze the guest for the instant (default: agent beside it)" },
	{ OPT_QUIESCE_TIMEOUT, "quiesce-timeout", "S", "seconds that it may be frozen, and a hook may take (30)" },
	{ OPT_HOOK_BEFORE, "hook-before", "CMD", "--socket: run this before the freeze and the instant" },
	{ OPT_HOOK_AFTER, "hook-after", "CMD", "--socket: and this after the instant and the thaw" },
	{ OPT_TLS_CERTIFICATES, "tls-certificates", "DIR", "--socket: X.509 credentials, where the daemon wants TLS" },
	{ OPT_TLS_PSK_FILE, "tls-psk-file", "FILE", "--socket: or a file with keys" },
	{ OPT_TLS_USERNAME, "tls-username", "NAME", "--socket: the name whose key that is" },
	{ 'p', "progress", "[=FD]", "show a progress bar, or write N/100 lines to FD" },
	{ OPT_JSON, "json", NULL, "print the restore point as JSON" },
	{ 'q', "quiet", NULL, "print no summary" },
	{ 'h', "help", NULL, "print this text and exit" },
	{ 'V', "version", NULL, "print the version and exit" },
	{ 0 },
};

static void help(void)
{
	printf("usage: merino backup --to DIR --socket PATH [OPTIONS] [DISK ...]\n"
	       "       merino backup --to DIR [OPTIONS] [NAME=]IMAGE ...\n"
	       "       merino backup --to DIR [OPTIONS] [NAME=]URI ...\n"
	       "Makes a restore point: a full one first, then incremental ones.\n\n");
	cli_help(stdout, table);
	printf("\nexamples:\n"
	       "  merino backup --to /srv/backups/vm1 --socket /run/merino/vm1.qmp\n"
	       "  merino backup --to /srv/backups/vm1 vm1.qcow2\n"
	       "  merino list /srv/backups/vm1\n");
}

static enum pull_go bad(const char *text)
{
	log_error("%s; see merino backup --help", text);
	return PULL_EXIT_BAD;
}

static enum pull_go take_progress(struct backup_options *o)
{
	int64_t fd = optarg ? cli_number("progress", optarg, 0, INT32_MAX) : 0;

	o->progress = optarg ? PROGRESS_FD : PROGRESS_BAR;
	o->progress_fd = fd;
	return fd < 0 ? PULL_EXIT_BAD : PULL_GO;
}

static enum pull_go take_compress(struct backup_options *o)
{
	if (optarg && strcmp(optarg, "zlib") && strcmp(optarg, "zstd"))
		return bad("--compress takes zlib or zstd");
	o->compress = optarg && !strcmp(optarg, "zlib") ? 'd' : 'z';
	return PULL_GO;
}

static enum pull_go take_number(unsigned *out, const char *option, unsigned max)
{
	int64_t n = cli_number(option, optarg, 1, max);

	*out = n;
	return n < 0 ? PULL_EXIT_BAD : PULL_GO;
}

static enum pull_go take_limit(struct backup_options *o)
{
	int64_t n = cli_number("limit", optarg, 1, INT64_MAX);

	o->limit = n;
	return n < 0 ? PULL_EXIT_BAD : PULL_GO;
}

static enum pull_go take(struct backup_options *o, int id)
{
	switch (id) {
	case OPT_TO: o->to = optarg; return PULL_GO;
	case OPT_SOCKET: o->socket = optarg; return PULL_GO;
	case OPT_FULL: o->full = true; return PULL_GO;
	case OPT_NAME: o->name = optarg; return PULL_GO;
	case OPT_BITMAP: o->bitmap = optarg; return PULL_GO;
	case OPT_COMPRESS: return take_compress(o);
	case OPT_LIMIT: return take_limit(o);
	case 'C': return take_number(&o->connections, "connections", SOURCE_CONNECTIONS);
	case 'R': return take_number(&o->requests, "requests", REQUESTS_MAX);
	case OPT_TIMEOUT: return take_number(&o->timeout, "timeout", TIMEOUT_MAX);
	case OPT_QUIESCE: o->quiesce = true; o->agent = optarg; return PULL_GO;
	case OPT_QUIESCE_TIMEOUT: return take_number(&o->quiesce_timeout, "quiesce-timeout", QUIESCE_LIMIT_MAX);
	case OPT_HOOK_BEFORE: o->hook_before = optarg; return PULL_GO;
	case OPT_HOOK_AFTER: o->hook_after = optarg; return PULL_GO;
	case OPT_MERINOD: o->merinod = optarg; return PULL_GO;
	case OPT_TLS_CERTIFICATES: o->tls_certificates = optarg; return PULL_GO;
	case OPT_TLS_PSK_FILE: o->tls_psk_file = optarg; return PULL_GO;
	case OPT_TLS_USERNAME: o->tls_username = optarg; return PULL_GO;
	case 'p': return take_progress(o);
	case OPT_JSON: o->json = true; return PULL_GO;
	case 'q': o->quiet = true; return PULL_GO;
	case 'h': help(); return PULL_EXIT_OK;
	case 'V': cli_version(); return PULL_EXIT_OK;
	default: return PULL_EXIT_BAD;
	}
}

/* Whether WHAT is a URI, with a disk's name before it or not. */
bool backup_is_uri(const char *what)
{
	const char *eq = strchr(what, '=');

	return uri_is_nbd(what) || (eq && uri_is_nbd(eq + 1));
}

static enum pull_go check(const struct backup_options *o)
{
	unsigned uris = 0;

	for (unsigned i = 0; i < o->n_what; i++)
		uris += backup_is_uri(o->what[i]);
	if (!o->to || !*o->to)
		return bad("--to DIR is missing");
	if (o->name && !repo_id_valid(o->name))
		return bad("--name takes 1 to 64 letters, digits, '.', '_', '+' and '-', a letter or digit "
			   "first, and not 'repository'");
	if (o->socket && uris)
		return bad("URIs do not go with --socket");
	if (uris && uris != o->n_what)
		return bad("give URIs or images, not both");
	if (!o->socket && !o->n_what)
		return bad("give --socket, URIs or images");
	if (o->n_what > REPO_DISKS)
		return bad("too many disks");
	if (o->bitmap && (!uris || o->full))
		return bad("--bitmap goes with URIs, and not with --full");
	if ((o->tls_certificates || o->tls_psk_file || o->tls_username) && !o->socket)
		return bad("--tls-... goes with --socket; in a URI, say ?tls-certificates=DIR or ?tls-psk-file=FILE");
	if ((o->quiesce || o->hook_before || o->hook_after) && !o->socket)
		return bad("--quiesce and --hook-... go with --socket");
	if (o->quiesce_timeout && !o->quiesce && !o->hook_before && !o->hook_after)
		return bad("--quiesce-timeout goes with --quiesce and --hook-...");
	if (o->tls_certificates && o->tls_psk_file)
		return bad("--tls-certificates and --tls-psk-file do not go together");
	if (o->tls_username && !o->tls_psk_file)
		return bad("--tls-username goes with --tls-psk-file");
	if (o->merinod && (o->socket || uris))
		return bad("--merinod is for images");
	return PULL_GO;
}

enum pull_go backup_parse(struct backup_options *o, int argc, char **argv)
{
	struct cli cli;
	int id;

	*o = (struct backup_options){ .requests = REQUESTS_DEFAULT, .timeout = TIMEOUT_DEFAULT };
	cli_init(&cli, table);
	while ((id = cli_next(&cli, argc, argv)) != -1) {
		enum pull_go go = take(o, id);

		if (go != PULL_GO)
			return go;
	}
	o->what = argv + optind;
	o->n_what = argc - optind;
	return check(o);
}
