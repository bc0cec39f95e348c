// What the images of a benchmark are made of: Debian packages, layer by layer.

export interface Recipe {
  readonly name: string;
  /** What it is like, for the table's reader. */
  readonly title: string;
  /** Debian packages, layer by layer, bottom up. */
  readonly layers: readonly (readonly string[])[];
  readonly packing?: Packing;
  readonly config?: Readonly<Record<string, unknown>>;
}

/** How layers are compressed; gzip unless a recipe says so. */
export type Packing = "gzip" | "zstd" | "none";

const base = [
  "base-files",
  "bash",
  "coreutils",
  "dpkg",
  "apt",
  "libapt-pkg6.0",
  "perl-base",
  "libc6",
  "libc-bin",
  "util-linux",
  "tar",
  "grep",
  "sed",
  "gzip",
  "findutils",
  "login",
  "passwd",
  "libstdc++6",
  "libssl3",
  "libsystemd0",
  "libtinfo6",
  "libselinux1",
  "libpcre2-8-0",
  "zlib1g",
  "debianutils",
  "tzdata",
  "ca-certificates",
  "openssl",
  "libicu72",
  "libdb5.3",
];

/** A Go toolchain on top of compilers and version control, as the images that Go programs are built in. */
export const goLike: Recipe = {
  name: "go",
  title: "Go-like, four layers",
  layers: [
    base,
    [
      "git",
      "git-man",
      "mercurial-common",
      "subversion",
      "libsvn1",
      "perl-modules-5.36",
      "libperl5.36",
      "curl",
      "libcurl4",
      "openssh-client",
      "procps",
    ],
    [
      "gcc-12",
      "g++-12",
      "cpp-12",
      "libgcc-12-dev",
      "libstdc++-12-dev",
      "binutils-x86-64-linux-gnu",
      "libbinutils",
      "libc6-dev",
      "linux-libc-dev",
      "libasan8",
      "libtsan2",
      "make",
      "gfortran-12",
      "libgfortran-12-dev",
    ],
    ["golang-1.19-go", "golang-1.19-src"],
  ],
};

/** Small enough for a first look, and able to run. */
export const tools: Recipe = {
  name: "tools",
  title: "shell tools, three layers",
  layers: [
    base,
    ["git", "git-man", "perl-modules-5.36", "libperl5.36", "curl", "libcurl4"],
    ["gcc-12", "cpp-12", "libgcc-12-dev", "binutils-x86-64-linux-gnu", "libbinutils", "libc6-dev"],
  ],
  config: { config: { Env: ["PATH=/usr/bin:/bin"] } },
};

const compilers = goLike.layers[2] ?? [];

/** By the names that the command line takes. */
export const recipes: Readonly<Record<string, Recipe>> = {
  go: goLike,
  jdk: {
    name: "jdk",
    title: "JDK-like, four layers",
    layers: [
      base,
      goLike.layers[1] ?? [],
      ["openjdk-17-jre-headless", "libmaven3-core-java", "libguava-java", "junit4", "ant"],
      ["openjdk-17-jdk-headless", "libboost1.74-dev"],
    ],
  },
  fat: {
    name: "fat",
    title: "one fat layer",
    layers: [
      [
        ...base,
        ...compilers,
        ...(goLike.layers[3] ?? []),
        "libllvm14",
        "llvm-14-dev",
        "libclang-14-dev",
        "libclang1-14",
        "libstd-rust-dev",
        "openjdk-17-jre-headless",
        "openjdk-17-jdk-headless",
        "libboost1.74-dev",
      ],
    ],
  },
  small: {
    name: "small",
    title: "many small files, four layers",
    layers: [
      [...base, "perl-modules-5.36", "libpython3.11-stdlib", "perl-doc"],
      ["libboost1.74-dev"],
      ["golang-1.19-src", "node-typescript", "node-babel7", "webpack"],
      ["emacs-common", "emacs-el", "python3-django", "mercurial-common", "linux-doc-6.1"],
    ],
  },
  zstd: { ...goLike, name: "go-zstd", title: "Go-like, four layers, zstd", packing: "zstd" },
  plain: { ...goLike, name: "go-plain", title: "Go-like, four layers, not compressed", packing: "none" },
  tiny: {
    name: "tiny",
    title: "1 MB, one layer",
    layers: [["grep", "sed", "gzip", "debianutils", "hostname"]],
  },
};
