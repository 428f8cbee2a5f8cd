# SPDX-License-Identifier: BSD-3-Clause
"""gdb: `source common/co-gdb.py`, then `co list` and `co bt ADDRESS`.

Shows the coroutines that are suspended (not idle in the pool), and unwinds one
of them: their stack pointers are saved by co_swap() with six registers below
the return address (common/co.c).  x86-64.
"""
import gdb


def coroutines():
    co = gdb.parse_and_eval('co_all')
    while int(co):
        if not int(co['ended']) and int(co['sp']):
            yield co
        co = co['all_next']


class Co(gdb.Command):
    """co list: suspended coroutines.  co bt ADDRESS: the backtrace of one."""

    def __init__(self):
        super().__init__('co', gdb.COMMAND_STACK)

    def invoke(self, arg, tty):
        words = arg.split()
        if words[:1] == ['bt'] and len(words) == 2:
            self.backtrace(gdb.parse_and_eval('(struct co *)' + words[1]))
        else:
            for co in coroutines():
                print(f"{int(co):#x}  {co['fn']}  ready={int(co['ready'])}")

    def backtrace(self, co):
        sp = int(co['sp'])
        word = gdb.lookup_type('unsigned long').pointer()
        regs = [int(gdb.Value(sp + 8 * i).cast(word).dereference()) for i in range(7)]
        names = ('r15', 'r14', 'r13', 'r12', 'rbx', 'rbp', 'rip')
        frame = gdb.newest_frame()
        saved = {n: int(frame.read_register(n)) for n in names + ('rsp',)}
        try:
            for name, value in zip(names, regs):
                gdb.execute(f'set ${name} = {value:#x}')
            gdb.execute(f'set $rsp = {sp + 56:#x}')
            gdb.execute('bt')
        finally:
            for name, value in saved.items():
                gdb.execute(f'set ${name} = {value:#x}')


Co()
