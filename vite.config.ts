import react from "@vitejs/plugin-react";
import { defineConfig } from "vite";

export default defineConfig({
  root: "renderer",
  base: "./",
  plugins: [react()],
  // No inlined assets: the page's Content-Security-Policy allows only files of its own origin.
  build: { outDir: "../dist/renderer", emptyOutDir: true, assetsInlineLimit: 0, modulePreload: { polyfill: false } },
});
