// A token server as docker-registry's auth.token wants one, over TLS: it knows users and identity tokens, answers GET
// and POST (distribution's token and OAuth2 specifications), and signs short-lived tokens that the registry believes.
//
// Everybody may pull what is below public/; users may pull everything. The registry grants each token a minute beyond
// its end, so the end is set a minute back, for a token's life to be what it is meant to be.

import { sign, X509Certificate } from "node:crypto";
import { readFileSync } from "node:fs";
import type { IncomingMessage, ServerResponse } from "node:http";
import { createServer, type Server } from "node:https";
import type { AddressInfo } from "node:net";
import { type KeyPair, readPair } from "./authority.ts";
import type { Login } from "./cri.ts";

/** What the registry's configuration says of whom it believes. */
export const tokenIssuer = "hawser token server";
export const tokenService = "hawser registry";

export interface TokenRequest {
  readonly method: string;
  /** "password" and "refresh_token" of a form, "basic" and "anonymous" of a GET. */
  readonly grant: string;
  readonly service: string;
  readonly scopes: readonly string[];
  readonly status: number;
  readonly agent: string;
}

interface Asking {
  readonly grant: string;
  readonly isKnown: boolean;
  readonly service: string;
  readonly scopes: readonly string[];
}

interface Access {
  readonly type: string;
  readonly name: string;
  readonly actions: readonly string[];
}

const registryLeewaySeconds = 60;

export class TokenServer implements AsyncDisposable {
  readonly asked: TokenRequest[] = [];
  /** Every token so far, the newest last. */
  readonly issued: string[] = [];
  /** Status for POST instead of a token, where a server does not have it. */
  postStatus: number | undefined;
  /** How long the registry believes a token. */
  lifeSeconds = 300;
  /** What the answers say of that. */
  toldSeconds = 300;
  /** Nobody may pull anything, though all get tokens. */
  isStrict = false;
  readonly #server: Server;
  readonly #signer: KeyPair;
  readonly #user: Login;
  readonly #identityToken: string;

  private constructor(server: Server, signer: KeyPair, user: Login, identityToken: string) {
    this.#server = server;
    this.#signer = signer;
    this.#user = user;
    this.#identityToken = identityToken;
  }

  static async start(options: {
    readonly tls: KeyPair;
    readonly signer: KeyPair;
    readonly user: Login;
    readonly identityToken: string;
  }): Promise<TokenServer> {
    const server = createServer(readPair(options.tls));
    const tokens = new TokenServer(server, options.signer, options.user, options.identityToken);
    server.on("request", (request, response) => void tokens.#answer(request, response));
    await new Promise<void>((resolve) => {
      server.listen(0, "127.0.0.1", resolve);
    });
    return tokens;
  }

  get realm(): string {
    return `https://127.0.0.1:${(this.#server.address() as AddressInfo).port}/token`;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await new Promise<void>((resolve) => {
      this.#server.close(() => resolve());
      this.#server.closeAllConnections();
    });
  }

  async #answer(request: IncomingMessage, response: ServerResponse): Promise<void> {
    const method = request.method ?? "";
    const asking = method === "POST" ? await this.#readForm(request) : this.#readQuery(request);
    const isServed = method !== "POST" || this.postStatus === undefined;
    const status = isServed ? (asking.isKnown ? 200 : 401) : (this.postStatus ?? 0);
    const { grant, service, scopes } = asking;
    this.asked.push({ method, grant, service, scopes, status, agent: request.headers["user-agent"] ?? "" });
    const body = status === 200 ? this.#token(asking, method) : { errors: [{ code: "UNAUTHORIZED" }] };
    response.writeHead(status, { "content-type": "application/json" }).end(JSON.stringify(body));
  }

  #token({ grant, scopes }: Asking, method: string): Record<string, unknown> {
    const access = scopes.map(parseScope).filter(({ name }) => {
      if (this.isStrict) return false;
      return grant !== "anonymous" || name.startsWith("public/");
    });
    const token = this.#sign(access);
    this.issued.push(token);
    const issued_at = new Date().toISOString();
    const common = { access_token: token, expires_in: this.toldSeconds, issued_at };
    return method === "POST" ? { ...common, scope: scopes.join(" ") } : { ...common, token };
  }

  #sign(access: readonly Access[]): string {
    const chain = [new X509Certificate(readFileSync(this.#signer.cert)).raw.toString("base64")];
    const nowSeconds = Date.now() / 1000;
    const claims = {
      iss: tokenIssuer,
      aud: tokenService,
      sub: this.#user.username,
      exp: Math.floor(nowSeconds + this.lifeSeconds - registryLeewaySeconds),
      nbf: Math.floor(nowSeconds - registryLeewaySeconds),
      iat: Math.floor(nowSeconds),
      jti: String(this.issued.length),
      access,
    };
    const encode = (part: unknown): string => Buffer.from(JSON.stringify(part)).toString("base64url");
    const content = `${encode({ typ: "JWT", alg: "ES256", x5c: chain })}.${encode(claims)}`;
    const key = { key: readFileSync(this.#signer.key), dsaEncoding: "ieee-p1363" } as const;
    return `${content}.${sign("sha256", Buffer.from(content), key).toString("base64url")}`;
  }

  #readQuery(request: IncomingMessage): Asking {
    const query = new URL(request.url ?? "/", "https://tokens").searchParams;
    const [, pair] = /^Basic (.+)$/.exec(request.headers.authorization ?? "") ?? [];
    const [username, ...password] = Buffer.from(pair ?? "", "base64")
      .toString()
      .split(":");
    const isKnown = pair === undefined || this.#knows(username, password.join(":"));
    const grant = pair === undefined ? "anonymous" : "basic";
    return { grant, isKnown, service: query.get("service") ?? "", scopes: query.getAll("scope") };
  }

  async #readForm(request: IncomingMessage): Promise<Asking> {
    const parts: Buffer[] = [];
    for await (const part of request as AsyncIterable<Buffer>) parts.push(part);
    const form = new URLSearchParams(Buffer.concat(parts).toString());
    const grant = form.get("grant_type") ?? "";
    const isKnown =
      grant === "refresh_token"
        ? form.get("refresh_token") === this.#identityToken
        : this.#knows(form.get("username") ?? "", form.get("password") ?? "");
    const scopes = (form.get("scope") ?? "").split(" ").filter(Boolean);
    return { grant, isKnown, service: form.get("service") ?? "", scopes };
  }

  #knows(username: string | undefined, password: string): boolean {
    return username === this.#user.username && password === this.#user.password;
  }
}

/** `repository:team/app:pull,push` */
function parseScope(scope: string): Access {
  const [type = "", name = "", actions = ""] = scope.split(":");
  return { type, name, actions: actions.split(",") };
}
