/** Absolute path of the folder that holds config.json, the tokenizer and the safetensors shards. */
export declare const modelDirectory: string
