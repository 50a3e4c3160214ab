"""Operations on batches: packing."""

from raylingvo.ops.bin_packing import best_fit as best_fit
from raylingvo.ops.bin_packing import fill_ratio as fill_ratio
from raylingvo.ops.packing import PackedSequences as PackedSequences
from raylingvo.ops.packing import PackedSingleSequence as PackedSingleSequence
from raylingvo.ops.packing import RowLayout as RowLayout
from raylingvo.ops.packing import apply_packing as apply_packing
from raylingvo.ops.packing import lay_out_rows as lay_out_rows
from raylingvo.ops.packing import pack_sequences as pack_sequences
from raylingvo.ops.packing import pack_single_sequence as pack_single_sequence
