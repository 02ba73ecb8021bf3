/*
 * Where a patched function's entry jumps to. A stub keeps the registers of the call where struct pt_regs
 * has them, asks the probe, and goes on to the function's displaced first instructions or, where the
 * probe says so, returns to the caller. Nothing of it stays on the stack.
 *
 * With no agent, and in a forked child, that is two loads and two branches.
 *
 * At a function's entry the flags and r11 hold nothing (x86-64 psABI); vector registers are not used.
 */
#define FRAME 168 /* sizeof(struct pt_regs); with the return address, the stack is aligned for a call */
#define REGS_R11 48
#define REGS_R10 56
#define REGS_R9 64
#define REGS_R8 72
#define REGS_AX 80
#define REGS_CX 88
#define REGS_DX 96
#define REGS_SI 104
#define REGS_DI 112
#define REGS_ORIG_AX 120
#define REGS_IP 128
#define REGS_SP 152

#define PLACE_IN_FLIGHT 0x1000
#define CELL_SHIFT 6 /* a cache line each */
#define CELL_MASK 63
#define OWNER_TID 0x3fffffff /* FUTEX_TID_MASK */
#define DISPLACED 64 /* room for the displaced instructions and the jump behind them */

	.section .stubs, "ax", @progbits

.macro stub program number
	.p2align 6
	.globl stub_\program\()_\number
stub_\program\()_\number:
	cmpl $0, inline_guard(%rip)
	je displaced_\program\()_\number
	testl $OWNER_TID, inline_area(%rip)
	jz displaced_\program\()_\number
	subq $FRAME, %rsp
	movq %r11, REGS_R11(%rsp)
	movq %r10, REGS_R10(%rsp)
	movq %r9, REGS_R9(%rsp)
	movq %r8, REGS_R8(%rsp)
	movq %rax, REGS_AX(%rsp)
	movq %rcx, REGS_CX(%rsp)
	movq %rdx, REGS_DX(%rsp)
	movq %rsi, REGS_SI(%rsp)
	movq %rdi, REGS_DI(%rsp)
	leaq FRAME(%rsp), %rax
	movq %rax, REGS_SP(%rsp)
	/* One of the counts of calls under way; threads have their stacks to themselves, so mostly their cells. */
	shrq $16, %rax
	andl $CELL_MASK, %eax
	shll $CELL_SHIFT, %eax
	leaq inline_area+PLACE_IN_FLIGHT(%rip), %rcx
	addq %rcx, %rax
	movq %rax, REGS_ORIG_AX(%rsp)
	lock incl (%rax)
	movq %rsp, %rdi
	call inline_\program
	movq REGS_ORIG_AX(%rsp), %rcx
	lock decl (%rcx)
	testl %eax, %eax
	jnz returns_\program\()_\number
	movq REGS_R11(%rsp), %r11
	movq REGS_R10(%rsp), %r10
	movq REGS_R9(%rsp), %r9
	movq REGS_R8(%rsp), %r8
	movq REGS_AX(%rsp), %rax
	movq REGS_CX(%rsp), %rcx
	movq REGS_DX(%rsp), %rdx
	movq REGS_SI(%rsp), %rsi
	movq REGS_DI(%rsp), %rdi
	addq $FRAME, %rsp
	.globl displaced_\program\()_\number
displaced_\program\()_\number:
	.fill DISPLACED, 1, 0xcc
returns_\program\()_\number:
	movq REGS_AX(%rsp), %rax
	movq REGS_DX(%rsp), %rdx
	addq $FRAME, %rsp
	ret
.endm

.altmacro
.macro stubs program
	.set number, 0
	.rept 4
	stub \program %number
	.set number, number + 1
	.endr
.endm

	stubs new_trace_id
	stubs build_recording_span
	stubs ensure_ended

	.section .note.GNU-stack, "", @progbits
