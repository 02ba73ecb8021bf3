/*
 * Where a patched function's entry jumps to. A stub keeps the registers of the call where struct pt_regs
 * has them, asks the probe, and goes on to the function's displaced first instructions or, where the
 * probe says so, returns to the caller. Nothing of it stays on the stack.
 *
 * With no agent, and in a forked child, that is two loads and two branches.
 *
 * At a function's entry the flags and r11 hold nothing (x86-64 psABI); vector registers are not used.
 */
#define REGS_R15 0
#define REGS_R14 8
#define REGS_R13 16
#define REGS_R12 24
#define REGS_BP 32
#define REGS_BX 40
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
#define CELL_TOP 26 /* of the product, the upper 6 bits: stacks are whole megabytes apart */
#define OWNER_TID 0x3fffffff /* FUTEX_TID_MASK */
#define DISPLACED 64 /* room for the displaced instructions and the jump behind them */

	.section .stubs, "ax", @progbits

/* What a function that is called may change. */
.macro keep_call_clobbered
	movq %r11, REGS_R11(%rsp)
	movq %r10, REGS_R10(%rsp)
	movq %r9, REGS_R9(%rsp)
	movq %r8, REGS_R8(%rsp)
	movq %rax, REGS_AX(%rsp)
	movq %rcx, REGS_CX(%rsp)
	movq %rdx, REGS_DX(%rsp)
	movq %rsi, REGS_SI(%rsp)
	movq %rdi, REGS_DI(%rsp)
.endm

.macro give_back_call_clobbered
	movq REGS_R11(%rsp), %r11
	movq REGS_R10(%rsp), %r10
	movq REGS_R9(%rsp), %r9
	movq REGS_R8(%rsp), %r8
	movq REGS_AX(%rsp), %rax
	movq REGS_CX(%rsp), %rcx
	movq REGS_DX(%rsp), %rdx
	movq REGS_SI(%rsp), %rsi
	movq REGS_DI(%rsp), %rdi
.endm

/*
 * Of the stack's address in rax: one of the counts of calls under way. Threads have their stacks to themselves, so
 * mostly their cells. rcx is lost.
 */
.macro find_cell
	shrq $16, %rax
	imull $0x9E3779B1, %eax, %eax
	shrl $CELL_TOP, %eax
	shll $CELL_SHIFT, %eax
	leaq inline_area+PLACE_IN_FLIGHT(%rip), %rcx
	addq %rcx, %rax
.endm

.macro stub program number
	.p2align 6
	.globl stub_\program\()_\number
stub_\program\()_\number:
	cmpl $0, inline_guard(%rip)
	je displaced_\program\()_\number
	testl $OWNER_TID, inline_area(%rip)
	jz displaced_\program\()_\number
	subq $FRAME, %rsp
	keep_call_clobbered
	leaq FRAME(%rsp), %rax
	movq %rax, REGS_SP(%rsp)
	find_cell
	movq %rax, REGS_ORIG_AX(%rsp)
	lock incl (%rax)
	movq %rsp, %rdi
	movl $\number, %esi
	call inline_\program
	movq REGS_ORIG_AX(%rsp), %rcx
	lock decl (%rcx)
	testl %eax, %eax
	jnz returns_\program\()_\number
	give_back_call_clobbered
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
.macro stubs program count
	.set number, 0
	.rept \count
	stub \program %number
	.set number, number + 1
	.endr
.endm

/*
 * Where an instruction within a function is displaced: it runs first, and what comes here then must leave
 * all registers as they are, the flags, and the 128 bytes below the stack, which a function that calls none may
 * use (x86-64 psABI). The stack is aligned only here.
 */
#define RED_ZONE 128
#define WITHIN_ROOM 32 /* for that instruction, and the jump to what follows here */

	.p2align 6
	.globl within
within:
	/* On the stack: whereto it returns, the cookie, the flags, the red zone. */
	cmpl $0, inline_guard(%rip)
	je 1f
	testl $OWNER_TID, inline_area(%rip)
	jz 1f
	subq $FRAME, %rsp
	movq %r15, REGS_R15(%rsp)
	movq %r14, REGS_R14(%rsp)
	movq %r13, REGS_R13(%rsp)
	movq %r12, REGS_R12(%rsp)
	movq %rbp, REGS_BP(%rsp)
	movq %rbx, REGS_BX(%rsp)
	keep_call_clobbered
	leaq FRAME+3*8+RED_ZONE(%rsp), %rax
	movq %rax, REGS_SP(%rsp)
	find_cell
	movq %rax, %rbp
	lock incl (%rax)
	movl FRAME+8(%rsp), %esi
	movq %rsp, %rdi
	movq %rsp, %rbx
	andq $-16, %rsp
	cld
	call inline_task_spawned
	lock decl (%rbp)
	movq %rbx, %rsp
	movq REGS_BP(%rsp), %rbp
	movq REGS_BX(%rsp), %rbx
	give_back_call_clobbered
	addq $FRAME, %rsp
1:	ret

.macro within_stub program number
	.p2align 5
	.globl stub_\program\()_\number
	.globl displaced_\program\()_\number
stub_\program\()_\number:
displaced_\program\()_\number:
	.fill WITHIN_ROOM, 1, 0xcc
	.globl behind_\program\()_\number
behind_\program\()_\number:
	leaq -RED_ZONE(%rsp), %rsp
	pushfq
	.byte 0x68 /* pushq, of a number that is put in with the instruction */
	.globl cookie_\program\()_\number
cookie_\program\()_\number:
	.long 0
	call within
	leaq 8(%rsp), %rsp
	popfq
	leaq RED_ZONE(%rsp), %rsp
	.globl back_\program\()_\number
back_\program\()_\number:
	.fill 5, 1, 0xcc /* the jump back */
.endm

	.set number, 0
	.rept 64
	within_stub task_spawned %number
	.set number, number + 1
	.endr

	stubs new_trace_id 16
	stubs build_recording_span 4
	stubs ensure_ended 4
	stubs wake 4

	.section .note.GNU-stack, "", @progbits
