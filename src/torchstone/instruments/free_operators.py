"""Operators that are no multiply-accumulates by convention.

MACs count weighted sums: products of matrices, convolutions, transforms, samples. Element-wise arithmetic, reductions,
normalisation, pooling, sorting, copies, indexing and creation count as nothing, as in the papers and every common tool.
Whatever is neither counted nor named here is reported, so that nothing is missed silently.
"""

from __future__ import annotations

from typing import Any

_FREE_TAGS = frozenset({"pointwise", "reduction", "view_copy", "inplace_view", "data_dependent_output"})

_REDUCTIONS = """
    all amax amin aminmax any argmax argmin count_nonzero cummax cummax_helper cummin cummin_helper cumprod cumsum
    dist hash_tensor histc histogram kthvalue linalg_vector_norm linalg__powsum log_softmax logcumsumexp logsumexp
    masked_softmax max mean median min mode nanmedian nansum native_norm norm powsum prod safe_softmax segment_reduce
    softmax sort sparse_csr_prod sparse_csr_sum sparse_log_softmax sparse_softmax sparse_sum std std_mean sum topk
    trace var var_mean nested_tensor_softmax_with_shape bincount bucketize searchsorted
"""

_NORMALISATION = """
    batch_norm_no_update batch_norm_with_update batch_norm_with_update_functional batch_norm_elemt batch_norm_stats
    batch_norm_gather_stats batch_norm_gather_stats_with_counts batch_norm_update_stats cudnn_batch_norm
    fused_rms_norm miopen_batch_norm native_batch_norm native_batch_norm_legit native_batch_norm_legit_functional
    native_batch_norm_legit_no_training native_group_norm native_layer_norm quantized_batch_norm renorm
    embedding_renorm weight_norm_interface
"""

_POINTWISE = """
    add add_relu addcdiv addcmul celu complex copysign div elu floor_divide gelu glu hardsigmoid hardshrink hardswish
    hardtanh heaviside isin isinf isnan leaky_relu lerp linalg_cross log_sigmoid_forward mish mul native_dropout polar
    prelu_kernel relu remainder rsub silu softplus softshrink sub thnn_fused_gru_cell thnn_fused_lstm_cell threshold
    transform_bias_rescale_qkv where xlogy conj_physical logical_and logical_not logical_or logical_xor bitwise_and
    bitwise_or bitwise_xor bitwise_left_shift bitwise_right_shift binary_cross_entropy
    binary_cross_entropy_with_logits ctc_loss cudnn_ctc_loss huber_loss mse_loss multi_margin_loss
    multilabel_margin_loss_forward nll_loss2d_forward nll_loss_forward smooth_l1_loss soft_margin_loss dequantize
    fake_quantize_per_channel_affine_cachemask fake_quantize_per_tensor_affine_cachemask
    fake_quantize_per_tensor_affine_cachemask_tensor_qparams fake_quantize_learnable_per_channel_affine
    fake_quantize_learnable_per_tensor_affine int_repr quantize_per_channel quantize_per_tensor
    quantize_per_tensor_dynamic
"""

_POOLING = """
    adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d adaptive_max_pool2d adaptive_max_pool3d avg_pool1d
    avg_pool2d avg_pool3d fractional_max_pool2d fractional_max_pool3d max_pool2d_with_indices max_pool3d_with_indices
    max_unpool2d max_unpool3d mkldnn_adaptive_avg_pool2d mkldnn_max_pool2d mkldnn_max_pool3d quantized_max_pool1d
    quantized_max_pool2d quantized_max_pool3d
"""

_MEMORY = """
    arange as_strided_scatter block_diag cat channel_shuffle chunk_cat clone coalesce coalesced col2im conj_copy
    constant_pad_nd convert_indices_from_coo_to_csr convert_indices_from_csr_to_coo copy copy_from
    copy_sparse_to_sparse cudnn_rnn_flatten_weight detach diag_embed diagonal_scatter efficientzerotensor embedding
    embedding_bag embedding_bag_forward_only empty empty_like empty_permuted empty_quantized empty_strided eye
    fft_fftfreq fft_rfftfreq fill flip from_file full full_like gather im2col index index_copy index_fill
    index_put index_put_impl index_reduce index_select jagged_to_padded_dense_forward lazy_clone lift lift_fresh
    linspace logspace masked_fill masked_scatter masked_select mkldnn_reorder_conv2d_weight
    mkldnn_reorder_conv3d_weight mkldnn_reshape mkldnn_transpose narrow_copy nested_from_padded
    nested_from_padded_tensor nested_tensor_from_mask nested_tensor_from_tensor_list new_empty new_empty_strided
    new_full new_ones new_zeros nonzero nonzero_static ones ones_like pack_padded_sequence
    padded_dense_to_jagged_forward pin_memory pixel_shuffle pixel_unshuffle put range reflection_pad1d
    reflection_pad2d reflection_pad3d repeat repeat_interleave replication_pad1d replication_pad2d replication_pad3d
    reshape_copy resize resize_as resize_output roll rot90 scalar_tensor scatter
    select_scatter set slice_scatter sparse_compressed_tensor sparse_coo_tensor sparse_coo_tensor_with_dims
    sparse_coo_tensor_with_dims_and_tensors sparse_mask sparse_resize sparse_resize_and_clear spdiags split_with_sizes
    squeeze stack t take to_copy to_dense to_mkldnn to_padded_tensor to_sparse to_sparse_bsc to_sparse_bsr
    to_sparse_csc to_sparse_csr transpose tril tril_indices triu triu_indices unique unique2 unique_consecutive
    unique_dim unique_dim_consecutive unsafe_index unsafe_index_put unsafe_masked_index unsafe_split
    unsafe_split_with_sizes unsafe_view unsqueeze upsample_nearest1d upsample_nearest2d upsample_nearest3d
    upsample_nearest_exact1d upsample_nearest_exact2d upsample_nearest_exact3d zero zeros zeros_like lu_unpack
    bartlett_window blackman_window hamming_window hann_window kaiser_window
"""

_RANDOM = """
    bernoulli binomial cauchy exponential fused_dropout geometric log_normal multinomial normal normal_functional
    poisson rand rand_like randint randint_like randn randn_like random randperm rrelu_with_noise
    rrelu_with_noise_functional sample_dirichlet standard_gamma uniform cudnn_init_dropout_state
    fill_mem_eff_dropout_mask
"""

_QUERIES = """
    allclose assert_async assert_scalar assert_tensor_metadata dense_dim dimI dimV equal functional_assert_async
    functional_assert_scalar fused_sdp_choice has_same_storage_numel is_all_true is_any_true is_coalesced is_pinned
    is_same_size is_set_to linalg_check_errors local_scalar_dense nested_tensor_size nested_tensor_storage_offsets
    nested_tensor_strides nnz print record_stream sparse_dim sym_constrain_range sym_constrain_range_for_size
    use_cudnn_ctc_loss validate_compressed_sparse_indices
"""

_FREE = frozenset(" ".join((_REDUCTIONS, _NORMALISATION, _POINTWISE, _POOLING, _MEMORY, _RANDOM, _QUERIES)).split())

_FREE_ELSEWHERE = frozenset(
    {"prim::device", "prim::layout", "torchvision::nms", "torchvision::ps_roi_pool", "torchvision::roi_pool"}
)


def is_free(operator: Any) -> bool:
    """Whether an operator (an overload, as dispatch modes see it) counts as no multiply-accumulate.

    In-place, private and list forms (``add_``, ``_softmax``, ``_foreach_add``) are what their plain form is.
    """
    namespace, name = operator._overloadpacket._qualified_op_name.split("::")
    if operator.is_view or _FREE_TAGS & {tag.name for tag in operator.tags}:
        return True
    if namespace != "aten":
        return f"{namespace}::{name}" in _FREE_ELSEWHERE
    name = name.removeprefix("_foreach_").removesuffix("_").removeprefix("_")
    return name in _FREE or (name.removesuffix("_copy") in _FREE) or _has_pointwise_form(name)


def _has_pointwise_form(name: str) -> bool:
    """Whether some overload carries a free tag: ``_foreach_exp`` and ``exp.out`` compute what ``exp`` does."""
    import torch

    packet = getattr(torch.ops.aten, name, None)
    if packet is None:
        return False
    overloads = (getattr(packet, overload) for overload in packet.overloads())
    return any(_FREE_TAGS & {tag.name for tag in overload.tags} for overload in overloads)
