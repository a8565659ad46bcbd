/** CUDA backend for Multi-head Latent Attention. */
export {}
