/** `root`: the installation's directory. Call it before anything of ours is imported. */
export declare function prepareProcess(root: string): void;
