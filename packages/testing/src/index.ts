/** One contract suite that every backend of FlashMLA passes. */
export {}
