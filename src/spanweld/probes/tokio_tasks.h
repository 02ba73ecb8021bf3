/* tokio_tasks: what its programs are told where they are attached. */
#ifndef SPANWELD_TOKIO_TASKS_H
#define SPANWELD_TOKIO_TASKS_H

/* The cookie of tokio_task_spawned: which register has the new task's id. image/tasks.py, REGISTERS */
enum id_register {
	ID_IN_AX = 0,
	ID_IN_BX,
	ID_IN_CX,
	ID_IN_DX,
	ID_IN_SI,
	ID_IN_DI,
	ID_IN_BP,
	ID_IN_R8,
	ID_IN_R9,
	ID_IN_R10,
	ID_IN_R11,
	ID_IN_R12,
	ID_IN_R13,
	ID_IN_R14,
	ID_IN_R15,
};

#endif
