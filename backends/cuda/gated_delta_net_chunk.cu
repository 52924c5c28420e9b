// GATED_DELTA_NET in chunks, where CUDA has a kernel of its own: the threads of a block share rows and columns of q, k
// and G, in shared memory and between barriers. All else is in kernels/gated_delta_net_chunk.cl.

#include "gated_delta_net_chunk.cl"

// The blockwise form. One block of 16 x 16 threads per block of every chunk, a thread per element: what the rows of the
// block need of q, k and G, and what its columns need, stands in shared memory, 16 key channels at a time.
extern "C" __global__ void gated_delta_net_chunk_blocks(const arguments p, const float *q, const float *k,
                                                        const float *beta, const float *G, const float *decay,
                                                        float *Akk_blocks, float *Aqk_blocks) {
    __shared__ float q_i[BLOCK][BLOCK], k_i[BLOCK][BLOCK], G_i[BLOCK][BLOCK];  // row, channel
    __shared__ float k_j[BLOCK][BLOCK], G_j[BLOCK][BLOCK];                     // column, channel

    if (blockIdx.x >= p.sequences * p.heads * p.chunks * p.blocks) {
        return;
    }
    const unsigned int x = threadIdx.x, y = threadIdx.y;
    const size_t matrix = blockIdx.x / p.blocks;
    const size_t chunk = matrix % p.chunks;
    const size_t head = matrix / p.chunks % p.heads;
    const size_t sequence = matrix / (p.chunks * p.heads);
    const size_t key_head = p.interleaved ? head / (p.heads / p.key_heads) : head % p.key_heads;
    size_t row, column;
    place_of_block(blockIdx.x % p.blocks, &row, &column);

    // This thread computes element (i, j), and fetches channel x for row and column number y of the block.
    const size_t i = row * BLOCK + y, j = column * BLOCK + x;
    const size_t fetched_i = row * BLOCK + y, fetched_j = column * BLOCK + y;
    const size_t i_token = chunk * p.chunk + fetched_i, j_token = chunk * p.chunk + fetched_j;
    const size_t q_row = p.q_start + key_head * p.q_nb[1] + i_token * p.q_nb[2] + sequence * p.q_nb[3];
    const size_t k_row = p.k_start + key_head * p.k_nb[1] + i_token * p.k_nb[2] + sequence * p.k_nb[3];
    const size_t k_column = p.k_start + key_head * p.k_nb[1] + j_token * p.k_nb[2] + sequence * p.k_nb[3];
    const size_t beta_at = p.beta_start + head * p.beta_nb[1] + i_token * p.beta_nb[2] + sequence * p.beta_nb[3];

    // No thread of a block has work where its first row is beyond the last token.
    const size_t keys = chunk * p.chunk + row * BLOCK < p.tokens ? p.keys : 0;
    float kk = 0.0f;
    float qk = 0.0f;
    for (size_t tile = 0; tile < keys; tile += BLOCK) {
        const size_t d = tile + x;
        const bool i_there = d < p.keys && i_token < p.tokens;
        const bool j_there = d < p.keys && j_token < p.tokens;
        q_i[y][x] = i_there ? q[(q_row + d * p.q_nb[0]) / 4] : 0.0f;
        k_i[y][x] = i_there ? k[(k_row + d * p.k_nb[0]) / 4] : 0.0f;
        k_j[y][x] = j_there ? k[(k_column + d * p.k_nb[0]) / 4] : 0.0f;
        if (p.gates > 1) {
            G_i[y][x] = i_there ? G[(matrix * p.chunk + fetched_i) * p.gates + d] : 0.0f;
            G_j[y][x] = j_there ? G[(matrix * p.chunk + fetched_j) * p.gates + d] : 0.0f;
        }
        __syncthreads();
        if (j <= i && i_token < p.tokens) {  // beyond, G_i - G_j may be above 0
            for (unsigned int n = 0; n < BLOCK; n++) {
                const float key = p.gates > 1 ? k_j[x][n] * exp(G_i[y][n] - G_j[x][n]) : k_j[x][n];
                kk += k_i[y][n] * key;
                qk += q_i[y][n] * key;
            }
        }
        __syncthreads();  // all are done with the tile
    }
    if (j > i || i_token >= p.tokens) {
        kk = 0.0f;
        qk = 0.0f;
    } else {
        const float factor = p.gates > 1 ? 1.0f : decay[(matrix * p.chunk + i) * p.chunk + j];
        kk = j < i ? beta[beta_at / 4] * (kk * factor) : 0.0f;
        qk *= factor;
    }
    const size_t to = (blockIdx.x * BLOCK + y) * BLOCK + x;
    Akk_blocks[to] = kk;
    Aqk_blocks[to] = qk;
}
