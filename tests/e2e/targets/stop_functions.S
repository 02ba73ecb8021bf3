/*
 * The probed functions of stop_target.c: __int128 (seq, flags, slot). Each returns seq + 1 and
 * OWN_HIGH, and is probed on its first instruction.
 */
	.macro function name
	.globl \name
	.type \name, @function
\name:
	.endm

	.macro own_value
	lea 1(%rdi), %rax
	movabs $0x0123456789abcdef, %rdx
	.endm

	.text
function at_push
	push %rbp
	mov %rsp, %rbp
	own_value
	pop %rbp
	ret

function at_push_r15
	push %r15
	xor %r15, %r15
	own_value
	pop %r15
	ret

function at_sub
	sub $0x38, %rsp
	own_value
	add $0x38, %rsp
	ret

function at_big_sub
	sub $0x4000, %rsp
	own_value
	add $0x4000, %rsp
	ret

function at_mov
	mov %rdi, %rax
	own_value
	ret

function at_endbr64
	endbr64
	own_value
	ret

function at_load
	mov (%rdx), %rax
	own_value
	ret

function at_jump
	.byte 0xe9 /* jmp rel32 */
	.long jumped_to - . - 4
	ud2

function at_short_jump
	jmp jumped_to
	ud2

jumped_to:
	own_value
	ret

function at_branch
	.byte 0x0f, 0x84 /* je rel32 */
	.long jumped_to - . - 4
	own_value
	ret

function at_call
	call called
	ret
called:
	own_value
	ret

function at_nop5
	.byte 0x0f, 0x1f, 0x44, 0x00, 0x00
	own_value
	ret

/* Stands for a probe on the ret of a longer function: has no value of its own. */
function at_ret
	ret

/*
 * int call_checked(function, seq, flags, slot, value): calls with every callee-saved register set,
 * stores rax and rdx to value; returns how many registers were harmed.
 */
	.macro check number, register
	cmp $\number, \register
	je 1f
	inc %eax
1:
	.endm

function call_checked
	push %rbp
	push %rbx
	push %r12
	push %r13
	push %r14
	push %r15
	push %r8
	mov %rdi, %rax
	mov %rsi, %rdi
	mov %rdx, %rsi
	mov %rcx, %rdx
	mov $0x1001, %ebp
	mov $0x1002, %ebx
	mov $0x1003, %r12d
	mov $0x1004, %r13d
	mov $0x1005, %r14d
	mov $0x1006, %r15d
	call *%rax
	pop %r8
	mov %rax, (%r8)
	mov %rdx, 8(%r8)
	xor %eax, %eax
	check 0x1001, %rbp
	check 0x1002, %rbx
	check 0x1003, %r12
	check 0x1004, %r13
	check 0x1005, %r14
	check 0x1006, %r15
	pop %r15
	pop %r14
	pop %r13
	pop %r12
	pop %rbx
	pop %rbp
	ret

	.section .note.GNU-stack, "", @progbits
