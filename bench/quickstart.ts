// npm run quickstart: a first look. A private containerd and registry, a realistic image, one pull by containerd's own
// CRI and one by Hawser, a container from Hawser's image, both times. Everything it starts is stopped and removed.

import { PrivateContainerd } from "../test/harness/containerd.ts";
import { PrivateHawser } from "../test/harness/hawser.ts";
import { pushPause } from "../test/harness/images.ts";
import { PrivateRegistry } from "../test/harness/registry.ts";
import { pushRecipe, sizes } from "./images.ts";
import { interruptible } from "./interrupt.ts";
import { tools } from "./recipes.ts";
import { containerdSide, mustBeAccelerated, pull, touchMemory } from "./sides.ts";

const say = (text: string): void => console.log(text);

await interruptible(async (signal) => {
  say("Starting a private registry, and making an image from Debian packages (kept for the next time) ...");
  await using registry = await PrivateRegistry.start();
  const pause = await pushPause(registry);
  const image = await pushRecipe(registry, tools, (text) => say(`  ${text}`), signal);
  say(`  ${tools.title}: ${sizes(image)}\n`);

  say("Pulling it with containerd's own CRI, on fresh directories ...");
  const theirs = await containerdSide()(
    { registryPid: registry.pid, references: [image.reference], images: [image] },
    signal,
  );
  say(`  ${theirs.seconds.toFixed(2)} s\n`);

  say("Pulling it through Hawser's CRI socket, on fresh directories of another private containerd ...");
  await touchMemory([image], signal);
  await using containerd = await PrivateContainerd.start({ sandboxImage: pause.reference });
  await using hawser = await PrivateHawser.start({ containerd: containerd.address });
  const began = performance.now();
  const id = await pull(hawser.cri, image.reference, signal);
  const seconds = (performance.now() - began) / 1000;
  say(`  ${seconds.toFixed(2)} s`);
  await mustBeAccelerated(hawser);

  say("\nRunning a container from the image that Hawser pulled ...");
  const script =
    'echo "hello from $(git --version), in an image that Hawser pulled"; gcc-12 --version | head -1';
  const output = await containerd.run(id, ["/bin/bash", "-c", script]);
  say(output.replace(/^/gm, "  ").trimEnd());
  if (!output.includes("hello from git version"))
    throw new Error("the container did not print what it should");

  const ratio = (theirs.seconds / seconds).toFixed(1);
  say(`\ncontainerd ${theirs.seconds.toFixed(2)} s, Hawser ${seconds.toFixed(2)} s: ${ratio}x faster`);
  say("(one pull each; npm run bench measures properly)");
});
