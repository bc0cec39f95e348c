// Sharing: one run for all who ask, aborted only when nobody is left, and forgotten as soon as it failed.

import { expect, test } from "vitest";
import { orAnew, Sharing } from "../../src/pull/sharing.ts";

class Thing implements AsyncDisposable {
  disposals = 0;
  async [Symbol.asyncDispose](): Promise<void> {
    this.disposals += 1;
  }
}

function gate(): { readonly opened: Promise<void>; open(): void } {
  let open = (): void => {};
  const opened = new Promise<void>((resolve) => {
    open = resolve;
  });
  return { opened, open: () => open() };
}

test("callers of one key share one run, callers of another do not", async () => {
  const sharing = new Sharing<Thing>();
  let runs = 0;
  const start = async (): Promise<Thing> => {
    runs += 1;
    return new Thing();
  };
  const [a, b, c] = [sharing.join("x", start), sharing.join("x", start), sharing.join("y", start)];
  expect(await a.result).toBe(await b.result);
  expect(await c.result).not.toBe(await a.result);
  expect(runs).toBe(2);
});

test("the result is disposed of with the last share, once, and a later caller starts anew", async () => {
  const sharing = new Sharing<Thing>();
  const first = sharing.join("x", async () => new Thing());
  const second = sharing.join("x", async () => new Thing());
  const thing = await first.result;
  await first[Symbol.asyncDispose]();
  await first[Symbol.asyncDispose]();
  expect(thing.disposals).toBe(0);
  await second[Symbol.asyncDispose]();
  expect(thing.disposals).toBe(1);
  expect(sharing.size).toBe(0);
  const third = sharing.join("x", async () => new Thing());
  expect(await third.result).not.toBe(thing);
});

test("one caller going away does not abort the run; the last one does, and disposing waits for it to stop", async () => {
  const sharing = new Sharing<Thing>();
  const stop = gate();
  let aborted = false;
  const run = async (signal: AbortSignal): Promise<Thing> => {
    signal.addEventListener("abort", () => {
      aborted = true;
    });
    await stop.opened;
    return new Thing();
  };
  const [a, b] = [sharing.join("x", run), sharing.join("x", run)];
  await a[Symbol.asyncDispose]();
  expect(aborted).toBe(false);
  const gone = b[Symbol.asyncDispose]();
  expect(aborted).toBe(true);
  stop.open();
  await gone;
  expect((await b.result).disposals).toBe(1);
});

test("nobody joins a run that is being aborted", async () => {
  const sharing = new Sharing<Thing>();
  const stop = gate();
  const a = sharing.join("x", async () => {
    await stop.opened;
    return new Thing();
  });
  const gone = a[Symbol.asyncDispose]();
  const b = sharing.join("x", async () => new Thing());
  stop.open();
  await gone;
  expect((await b.result).disposals).toBe(0);
});

test("a failed run is forgotten at once", async () => {
  const sharing = new Sharing<Thing>();
  const a = sharing.join("x", async () => {
    throw new Error("no");
  });
  await expect(a.result).rejects.toThrow("no");
  const b = sharing.join("x", async () => new Thing());
  expect(await b.result).toBeInstanceOf(Thing);
  await a[Symbol.asyncDispose]();
  expect((await b.result).disposals).toBe(0);
});

test("what others have begun is begun anew once it has failed, once, and both shares are given back", async () => {
  const sharing = new Sharing<Thing>();
  const failed = gate();
  let runs = 0;
  const theirs = sharing.join("x", async () => {
    await failed.opened;
    throw new Error("their credentials");
  });
  const start = async (): Promise<Thing> => {
    runs += 1;
    return new Thing();
  };
  const share = orAnew(() => sharing.join("x", start));
  failed.open();
  const thing = await share.result;
  await expect(theirs.result).rejects.toThrow("their credentials");
  expect(runs).toBe(1);
  expect(sharing.has("x")).toBe(true);
  await share[Symbol.asyncDispose]();
  expect(thing.disposals).toBe(1);
  expect(sharing.size).toBe(0);

  const wrong = orAnew(() =>
    sharing.join("x", async () => {
      runs += 1;
      throw new Error("ours as well");
    }),
  );
  await expect(wrong.result).rejects.toThrow("ours as well");
  expect(runs).toBe(3);
});

test("what was let go of is not begun anew", async () => {
  const sharing = new Sharing<Thing>();
  let runs = 0;
  const share = orAnew(() =>
    sharing.join("x", async (signal) => {
      runs += 1;
      await new Promise((_resolve, reject) => {
        signal.addEventListener("abort", () => reject(new Error("aborted")));
      });
      return new Thing();
    }),
  );
  await share[Symbol.asyncDispose]();
  await expect(share.result).rejects.toThrow("aborted");
  expect(runs).toBe(1);
  expect(sharing.size).toBe(0);
});
