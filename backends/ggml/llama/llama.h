// What is called of libllama and, for watching, of ggml. Pointers to ggml's own structs are plain addresses here: no
// accessor gives what stands in them, so their fields are found and checked when a library is loaded (tensors.py).
// The parameter structs go by value, and their fields move between builds: params.py finds them in this much memory.

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
    size_t mem_size;
    void * mem_buffer;
    bool no_alloc;
} ggml_init_params;

typedef struct {
    bool no_alloc;
    void ** ctx;
} gguf_init_params;

typedef void (*log_callback)(int level, const char * text, void * user_data);

// libllama
void llama_backend_init(void);
void llama_log_set(log_callback callback, void * user_data);
llama_params llama_model_default_params(void);
llama_params llama_context_default_params(void);
void * llama_model_load_from_file(const char * path, llama_params params);
void * llama_model_init_from_user(void * metadata, void * set_tensor_data, void * user_data, llama_params params);
void llama_model_free(void * model);
void * llama_model_get_vocab(void * model);
int32_t llama_vocab_n_tokens(void * vocab);
int32_t llama_model_n_ctx_train(void * model);
int32_t llama_model_n_layer(void * model);
uint64_t llama_model_size(void * model);
uint64_t llama_model_n_params(void * model);
void * llama_init_from_model(void * model, llama_params params);
void llama_free(void * context);
uint32_t llama_n_ctx(void * context);
uint32_t llama_n_batch(void * context);
uint32_t llama_n_seq_max(void * context);
int32_t llama_n_threads(void * context);
void * llama_get_memory(void * context);
void llama_memory_clear(void * memory, bool data);
int32_t llama_decode(void * context, llama_batch batch);
void llama_synchronize(void * context);
float * llama_get_logits_ith(void * context, int32_t i);

// devices
void ggml_backend_load_all_from_path(const char * folder);
size_t ggml_backend_dev_count(void);
void * ggml_backend_dev_get(size_t index);
const char * ggml_backend_dev_name(void * device);
const char * ggml_backend_dev_description(void * device);
int ggml_backend_dev_type(void * device);
void * ggml_backend_dev_buffer_type(void * device);

// memory
void * ggml_backend_buft_alloc_buffer(void * buffer_type, size_t size);
void ggml_backend_buffer_free(void * buffer);
const char * ggml_backend_buffer_name(void * buffer);
void * ggml_backend_buffer_get_base(void * buffer);
size_t ggml_backend_buffer_get_size(void * buffer);
bool ggml_backend_buffer_is_host(void * buffer);
int ggml_backend_buffer_get_usage(void * buffer);
int ggml_backend_tensor_alloc(void * buffer, void * tensor, void * address);
void ggml_backend_tensor_set(void * tensor, const void * data, size_t offset, size_t size);
void ggml_backend_tensor_get(void * tensor, void * data, size_t offset, size_t size);

// tensors
void * ggml_init(ggml_init_params params);
void ggml_free(void * context);
size_t ggml_tensor_overhead(void);
size_t ggml_nbytes(void * tensor);
const char * ggml_type_name(int type);
const char * ggml_op_name(int op);
const char * ggml_op_desc(void * tensor);
const char * ggml_get_name(void * tensor);
void * ggml_set_name(void * tensor, const char * name);
void ggml_set_output(void * tensor);
void * ggml_new_tensor_4d(void * context, int type, int64_t ne0, int64_t ne1, int64_t ne2, int64_t ne3);
void * ggml_view_1d(void * context, void * tensor, int64_t ne0, size_t offset);
void * ggml_add(void * context, void * a, void * b);
void * ggml_scale(void * context, void * a, float s);

// model files
void * gguf_init_from_file(const char * path, gguf_init_params params);
