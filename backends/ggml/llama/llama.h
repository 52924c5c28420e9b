// What is called of libllama, and of ggml besides declarations.h, in the form of that file. Models and contexts are
// plain addresses. The parameter structs go by value, and their fields move between builds: params.py finds them in
// this much memory.

typedef struct { uint64_t words[64]; } llama_params;

typedef struct {
    int32_t n_tokens;
    int32_t * token;
    float * embd;
    int32_t * pos;
    int32_t * n_seq_id;
    int32_t ** seq_id;
    int8_t * logits;
} llama_batch;

typedef struct {
    bool no_alloc;
    void ** ctx;
} gguf_init_params;

typedef bool (*eval_callback)(struct ggml_tensor * tensor, bool ask, void * user_data);
typedef void (*set_tensor_data)(struct ggml_tensor * tensor, void * user_data);

// ---- libllama

void llama_backend_init(void);
void llama_log_set(ggml_log_callback callback, void * user_data);
llama_params llama_model_default_params(void);
llama_params llama_context_default_params(void);
void * llama_model_load_from_file(const char * path, llama_params params);
void * llama_model_init_from_user(void * metadata, set_tensor_data callback, void * user_data, llama_params params);
void * llama_model_get_vocab(void * model);
int32_t llama_vocab_n_tokens(void * vocab);
int32_t llama_model_n_ctx_train(void * model);
int32_t llama_model_n_layer(void * model);
uint64_t llama_model_n_params(void * model);
void * llama_init_from_model(void * model, llama_params params);
uint32_t llama_n_ctx(void * context);
uint32_t llama_n_batch(void * context);
uint32_t llama_n_seq_max(void * context);
int32_t llama_n_threads(void * context);
void * llama_get_memory(void * context);
void llama_memory_clear(void * memory, bool data);
int32_t llama_decode(void * context, llama_batch batch);
void llama_synchronize(void * context);
float * llama_get_logits_ith(void * context, int32_t i);

// ---- ggml

const char * ggml_backend_buffer_name(ggml_backend_buffer_t buffer);
size_t ggml_backend_buffer_get_size(ggml_backend_buffer_t buffer);
bool ggml_backend_buffer_is_host(ggml_backend_buffer_t buffer);
int ggml_backend_buffer_get_usage(ggml_backend_buffer_t buffer);
void * gguf_init_from_file(const char * path, gguf_init_params params);
