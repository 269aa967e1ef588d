import { describe, expect, test } from "vitest";
import { decodePath, Query } from "./query.ts";

describe("a query", () => {
  test("gives values as the bytes they are", () => {
    const query = new Query("command=a%FFb&command=&command=%00&command=plain");
    expect(query.bytes("command").map((value) => [...value])).toEqual([[0x61, 0xff, 0x62], [], [0], [...Buffer.from("plain")]]);
  });

  test.each([
    ["a=x+y", ["x y"]],
    ["a=x%2By", ["x+y"]],
    ["a=1=2", ["1=2"]],
    ["a", [""]],
    ["a=1&b=2&a=3", ["1", "3"]],
    ["%61=1", ["1"]],
    ["a=%C3%BC", ["ü"]],
    ["a=%zz&a=ok", ["ok"]],
    ["a=%f&a=%", []],
    ["a=1;b=2", []],
    ["&&a=1&", ["1"]],
  ])("%s", (text, expected) => {
    expect(new Query(text).all("a")).toEqual(expected);
  });
});

test("a path is decoded after it was split", () => {
  expect(decodePath("/exec/ns/a%2Fb")).toEqual(["exec", "ns", "a/b"]);
  expect(decodePath("/exec/%FF")).toBeUndefined();
  expect(decodePath("/runningpods/")).toEqual(["runningpods", ""]);
});
