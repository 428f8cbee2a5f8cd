/* SPDX-License-Identifier: BSD-3-Clause */
/* qmp-types: what commands return. */
#ifndef MERINO_QMP_TYPES_H
#define MERINO_QMP_TYPES_H

#include "nbd-server/qmp.h"

extern const struct qmp_arg ret_version;	/* VersionInfo */
extern const struct qmp_arg ret_commands;	/* [CommandInfo] */
extern const struct qmp_arg ret_schema;		/* [SchemaInfo] */
extern const struct qmp_arg ret_named_nodes;	/* [BlockDeviceInfo] */
extern const struct qmp_arg ret_blocks;		/* [BlockInfo] */
extern const struct qmp_arg ret_exports;	/* [BlockExportInfo] */
extern const struct qmp_arg ret_stats;		/* [BlockStats] */

#endif
