#!/usr/bin/python3
# SPDX-License-Identifier: BSD-3-Clause
"""Writes the seeds of the fuzz targets, tests/fuzz/corpus/TARGET/NAME; run it again after a change here.

What a fuzzer found and is worth keeping lies beside them, under a name that begins with "found-".
"""

import pathlib

CORPUS = pathlib.Path(__file__).resolve().parent / "corpus"


def put(target, name, data):
    path = CORPUS / target / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data if isinstance(data, bytes) else data.encode())


def keyval():
    texts = {
        "driver": (0, "qcow2,node-name=disk0,file.driver=file,file.filename=/a/b,,c.qcow2,read-only=on"),
        "array": (0, "driver=x,list.0=a,list.1.key=b,list.2=,"),
        "json": (0, '{"driver":"raw","file":{"driver":"file","filename":"x"},"size":1048576,"a":[true,null,-1]}'),
        "chardev": (1, "socket,id=mon,path=/run/x,server=on,nowait"),
        "size-suffix": (2, "1.5G"), "size-hex": (2, "0x7fffffffffffffff"), "size-big": (2, "16777215.9T"),
        "uri-unix": (3, "nbd+unix:///disk%20name?socket=/run/m.sock"),
        "uri-tcp": (3, "nbds://user@[::1]:10809/export?tls-type=psk&tls-psk-file=/etc/k&tls-verify-peer=false"),
        "uri-abstract": (3, "nbd+unix:///?socket=%00name"),
    }
    for name, (kind, text) in texts.items():
        put("keyval", name, bytes([kind]) + text.encode())


if __name__ == "__main__":
    keyval()
