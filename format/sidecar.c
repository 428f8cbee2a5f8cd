/* SPDX-License-Identifier: BSD-3-Clause */
/* sidecar: bitmaps beside an image, as the drivers raw, file and host_device see them
 * (sidecar.h).
 */
#include "format/sidecar.h"

#include <errno.h>
#include <stdlib.h>

#include "common/log.h"
#include "common/options.h"

int sidecar_options(struct node *n, struct json_object *opts, struct error *err)
{
	int rc = opts_str(opts, "sidecar-dir", &n->sidecar.dir, err);

	if (!rc)
		rc = opts_bool(opts, "trust-sidecar", &n->sidecar.trust, err);
	if (!rc && n->sidecar.dir && n->sidecar.dir[0] != '/')
		rc = error_set(err, -EINVAL, "sidecar-dir must be an absolute path");
	return rc;
}

int sidecar_open(struct node *n, struct error *err)
{
	n->sidecar.possible = true;
	return node_bitmap_hooks && node_bitmap_hooks->load ? node_bitmap_hooks->load(n, err) : 0;
}

void sidecar_close(struct node *n)
{
	struct error err = ERROR_INIT;

	if (n->sidecar.held && node_bitmap_hooks->store(n, &err)) {
		log_error("bitmaps could not be stored: image=%s error=%s",
			  n->filename ? n->filename : n->name, err.text);
		if (!n->graph->close_rc)
			n->graph->close_rc = err.code;
	}
	free(n->sidecar.dir);
	n->sidecar = (struct node_sidecar){ 0 };
}
