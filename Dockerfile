# An image with a bundle that "npm run release" has made, for installers that run in a cluster:
#
#   docker build --build-arg BASE=debian:bookworm-slim .
#
# BASE is anything that has the floor of README.md. It needs no shell, since nothing is run while the image is built;
# "hawser agent", which a DaemonSet runs, needs nsenter of util-linux in it.
ARG BASE=debian:bookworm-slim
ARG VERSION=0.1.0

# The archive ends here, and does not stay behind as a layer of the image.
FROM scratch AS bundle
ARG VERSION
ARG TARGETARCH
ADD dist-release/hawser-${VERSION}-linux-${TARGETARCH}.tar.gz /

FROM ${BASE}
ARG VERSION
ARG TARGETARCH
LABEL org.opencontainers.image.title="Hawser" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.licenses="Apache-2.0"
# Not where a node has it: an installer sees the node's /opt/hawser, and must not confuse the two.
COPY --from=bundle /hawser-${VERSION}-linux-${TARGETARCH} /usr/local/lib/hawser
ENV PATH=/usr/local/lib/hawser/bin:${PATH}
# What bin/hawser would say, which needs a shell.
ENV HAWSER_BUNDLE=/usr/local/lib/hawser
ENTRYPOINT ["/usr/local/lib/hawser/lib/node", "/usr/local/lib/hawser/lib/hawser/dist/main.js"]
CMD ["--help"]
