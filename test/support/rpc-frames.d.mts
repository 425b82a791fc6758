export declare const COMMANDS: {
  readonly alloc_buffer: 0;
  readonly get_alignment: 1;
  readonly get_max_size: 2;
  readonly buffer_get_base: 3;
  readonly free_buffer: 4;
  readonly buffer_clear: 5;
  readonly set_tensor: 6;
  readonly set_tensor_hash: 7;
  readonly get_tensor: 8;
  readonly copy_tensor: 9;
  readonly graph_compute: 10;
  readonly get_device_memory: 11;
  readonly init_tensor: 12;
  readonly get_alloc_size: 13;
  readonly hello: 14;
  readonly device_count: 15;
  readonly graph_recompute: 16;
  readonly memset_tensor: 17;
  readonly write: 128;
  readonly read: 129;
  readonly offer: 130;
  readonly put_weight: 131;
  readonly use_weight: 132;
  readonly update: 133;
  readonly read_half: 134;
  readonly packed_graph: 135;
};
export type CommandName = keyof typeof COMMANDS;

/** Whether the worker answers the command. */
export declare function hasAnswer(command: string): boolean;
export declare function isGraph(command: string): boolean;
/** Commands that bring the result of a graph back. */
export declare function isRead(command: string): boolean;
/** Commands that bring a tensor's weights to the worker while a model loads. */
export declare function isWeight(command: string): boolean;

interface Place {
  /** Whether the piece is the frame's header. */
  readonly first: boolean;
  readonly last: boolean;
}

/** Cuts what a master sends into requests, piece by piece as the bytes come in. */
export declare class RequestParser {
  push(
    chunk: Buffer,
    onPiece: (piece: Buffer, frame: { command: CommandName; size: number }, place: Place) => void,
  ): void;
}

/** Cuts what a worker sends into answers and notices. */
export declare class AnswerParser {
  push(
    chunk: Buffer,
    onPiece: (piece: Buffer, frame: { command: 'answer' | 'notice'; size: number }, place: Place) => void,
  ): void;
}
